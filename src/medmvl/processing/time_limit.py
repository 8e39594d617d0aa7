"""A limit of time and memory for Python code of others, in any thread."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Growth of the process's memory in bytes, while the code runs, after which it is interrupted; and seconds between two checks. Below a
#: power of two, so that a text that doubles is caught at 512 MiB and not at 1 GiB, with the next doubling under way.
MOST_GROWTH, CHECK_SECONDS = 448 * 2**20, 0.02


class TimeLimitError(Exception):
    """The code did not end in time."""


class MemoryLimitError(Exception):
    """The code took too much memory."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitError in the block if it is not done after `seconds`, MemoryLimitError if memory grows by 448 MiB.

    The exception arrives between two bytecodes; a single long call into C is not interrupted. Memory is checked 50 times
    a second, where the system has /proc, and that of the whole process: other threads count as well.
    """
    thread = ctypes.c_ulong(threading.get_ident())
    lock, done, late = threading.Lock(), threading.Event(), threading.Event()

    def watch() -> None:
        end, before = time.monotonic() + seconds, _resident_bytes()
        while not done.wait(CHECK_SECONDS):
            grown = _resident_bytes() - before > MOST_GROWTH
            if grown or time.monotonic() > end:
                break
        else:
            return
        with lock:
            if not done.is_set():
                late.set()
                error = MemoryLimitError if grown else TimeLimitError
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(error))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        with lock:
            done.set()
            if late.is_set():  # it may still be on its way
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)


def _resident_bytes() -> int:
    """Return the memory that this process holds, 0 where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
