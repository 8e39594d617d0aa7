"""Limits of time and memory for Python code of others, in any thread."""

from __future__ import annotations

import ctypes
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Bytes that the process may take while the code runs, beyond what it holds.
MOST_GROWTH = 2**30

_changing = threading.Lock()
_before: list[tuple[int, int]] = []  # the limit to return to, once for each block that runs


class TimeLimitError(Exception):
    """The code did not end in time."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitError in the block if it is not done after `seconds`.

    The exception arrives between two bytecodes; a single long call into C is not interrupted.
    """
    thread = ctypes.c_ulong(threading.get_ident())
    lock, done, late = threading.Lock(), threading.Event(), threading.Event()

    def watch() -> None:
        if done.wait(seconds):
            return
        with lock:
            if not done.is_set():
                late.set()
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TimeLimitError))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        with lock:
            done.set()
            if late.is_set():  # it may still be on its way
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)


@contextmanager
def memory_limit() -> Iterator[None]:
    """Raise MemoryError in the block where it asks for more than 1 GiB beyond what the process holds.

    The system counts (Linux's RLIMIT_DATA), so a single step of any size is refused before it is made. It counts the whole
    process: what other threads ask for meanwhile counts as well. Other systems know no such limit: there it does nothing.
    """
    held = _data_bytes()
    if held is None:
        yield
        return
    with _changing:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        _before.append(_before[0] if _before else (soft, hard))
        limits = [limit for limit in (_before[0][0], hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([held + MOST_GROWTH, *limits]), hard))
    try:
        yield
    finally:
        with _changing:
            before = _before.pop()
            if not _before:
                resource.setrlimit(resource.RLIMIT_DATA, before)


def _data_bytes() -> int | None:
    """Return the bytes that RLIMIT_DATA counts, None where the system does not tell them."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
