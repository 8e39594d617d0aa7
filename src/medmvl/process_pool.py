"""Pools of processes that end when the process that made them does."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from medmvl.errors import DataError

T = TypeVar("T")


def results_in_order(workers: int, call: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Yield `call(*one)` for each of `arguments`, in order; no more than two per worker are under way or waiting.

    Args:
        workers: processes; with 1 the work is done in this one.
        call: a function or object that can be pickled, as can its arguments and results.
        arguments: those of each call.

    Raises:
        DataError: if a worker dies.
    """
    if workers <= 1:
        yield from (call(*one) for one in arguments)
        return
    with process_pool(workers) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for one in arguments:
                waiting.append(pool.submit(call, *one))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "A worker process died, most likely for want of memory. What is finished is kept: run the command "
                "again, with fewer workers."
            ) from error


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of `workers` new processes, each with one torch thread: parallel work is by processes.

    The processes end at once if this one ends, even if it is killed, and if an error leaves the block. A worker that dies
    raises `BrokenProcessPool` where a result is asked for.
    """
    spawn = multiprocessing.get_context("spawn")  # a forked process that has run torch may hang
    held_by_workers, held_here = spawn.Pipe(duplex=False)
    try:
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin, initargs=(held_by_workers,)) as pool:
            try:
                yield pool
            except BaseException:
                held_here.close()
                raise
    finally:
        held_here.close()
        held_by_workers.close()


def _begin(pipe: Connection) -> None:
    # torch reads these when it is loaded, which workers that need no torch never do.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    threading.Thread(target=_end_when_closed, args=(pipe,), daemon=True).start()


def _end_when_closed(pipe: Connection) -> None:
    """End this process when the other end of a pipe is closed, which the system does for a process that ends."""
    with suppress(EOFError, OSError):
        pipe.recv_bytes()
    os._exit(1)
