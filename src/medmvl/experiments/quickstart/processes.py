"""Two processes that work at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from medmvl.errors import TrainingError
from medmvl.process_pool import process_pool

_PROCESSES = 2


def in_parallel(calls: Sequence[tuple[Any, ...]], watch: Callable[[], None]) -> list[Any]:
    """Return the result of each of `calls`, from two processes that begin them in order; the first error ends both.

    Args:
        calls: a function and its arguments each, which can be pickled.
        watch: called every second while they work, such as to move a progress bar, which the processes do not draw.

    Raises:
        TrainingError: if a process ends without a result.
    """
    try:
        with process_pool(_PROCESSES) as pool:
            jobs = [pool.submit(*call) for call in calls]
            pending = set(jobs)
            while pending:
                done, pending = wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
                for job in done:
                    job.result()
                watch()
            return [job.result() for job in jobs]
    except BrokenProcessPool as error:
        raise TrainingError(
            "A process of the quickstart ended early. Most often memory was short, or quickstart() was called in a script outside "
            "`if __name__ == '__main__':`. What is finished is kept: run it again."
        ) from error
