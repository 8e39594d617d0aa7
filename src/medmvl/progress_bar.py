"""Progress bars with the time left. All bars of the toolkit are made here.

They are drawn on the error stream, and only if it is a terminal: a log gets nothing. Only the first process of a training
draws, and no worker process. A bar appears when its work has taken a second. Bars that are open at the same time, as of a
conversion and of the file it reads, share one display.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

#: Seconds of work before a bar appears.
DELAY = 1.0
#: Seconds whose speed gives the time left, and the least seconds between two samples of it.
WINDOW, STEP = 300.0, 0.5


class Bar:
    """One bar; `close` removes it.

    Args:
        title: what is counted.
        total: number of items; None: not known, then the time that has passed is shown instead of the time left.
        percent: whether the share is shown instead of the numbers.
    """

    def __init__(self, title: str, total: int | None = None, *, percent: bool = False) -> None:
        self.title, self.total, self.percent = title, total, percent
        self.done, self.facts = 0, ""
        self._begun = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque()
        self._visible = is_shown()
        self._task: Any = None

    def update(self, done: int, total: int | None = None, facts: str | None = None) -> None:
        """Set the number of finished items, and if given the number of all and a text behind the time.

        The first call is the start: items that were finished before, as of a run that is resumed, took no time.
        """
        self.total = self.total if total is None else total
        self.facts = self.facts if facts is None else facts
        now = time.monotonic()
        if done < self.done:  # a new round
            self._samples.clear()
        self.done = done
        if len(self._samples) > 1 and now - self._samples[-2][0] < STEP:
            self._samples.pop()  # a few samples a second are enough, however many the items
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[1][0] < now - WINDOW:
            self._samples.popleft()
        if self._visible and self._task is None and now - self._begun >= DELAY:
            self._task = _DISPLAY.add(self)
        if self._task is not None:
            _DISPLAY.update(self._task, self)

    def advance(self, total: int | None = None) -> None:
        """Count one more item."""
        self.update(self.done + 1, total)

    def close(self) -> None:
        """Remove the bar."""
        if self._task is not None:
            _DISPLAY.remove(self._task)
        self._task, self._visible = None, False

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the speed of the last minutes; None if not known yet."""
        if self.total is None or not self._samples:
            return None
        (begin, first), (end, last) = self._samples[0], self._samples[-1]
        if last <= first:
            return None
        needed = (self.total - last) * (end - begin) / (last - first)
        return max(0.0, needed - (time.monotonic() - end))


@contextmanager
def progress_bar(title: str, total: int | None = None, *, percent: bool = False) -> Iterator[Bar]:
    """Yield a bar, and remove it at the end; arguments as for `Bar`."""
    bar = Bar(title, total, percent=percent)
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """Show a title and the time that has passed, for work that cannot be counted, such as loading a model."""
    bar = Bar(title)
    timer = threading.Timer(DELAY, bar.update, [0])
    timer.daemon = True
    if is_shown():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()  # it may be about to draw
        bar.close()


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, with a bar that counts those that are finished.

    Args:
        items: what is worked on.
        title: what is counted.
        total: number of items; default: their length, if they have one.
    """
    total = len(items) if total is None and isinstance(items, Collection) else total
    with progress_bar(title, total) as bar:
        bar.update(0)
        for item in items:
            yield item
            bar.advance()


def is_shown() -> bool:
    """Whether this process draws bars: its error stream is a terminal, and it is the first one or the only one."""
    first = os.environ.get("RANK", "0") == "0" and multiprocessing.parent_process() is None
    return first and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class _Display:
    """The bars that are open, drawn together."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._open = 0
        self._lock = threading.RLock()

    def add(self, bar: Bar) -> Any:
        """Draw a further bar and return its key."""
        with self._lock:
            if self._progress is None:
                self._progress = _new_progress()
                self._progress.start()
            self._open += 1
            return self._progress.add_task(bar.title, total=None, bar=bar)

    def update(self, task: Any, bar: Bar) -> None:
        """Draw the state of a bar."""
        with self._lock:
            if self._progress is not None:
                self._progress.update(task, completed=bar.done, total=bar.total)

    def remove(self, task: Any) -> None:
        """Remove a bar; with the last one the display ends."""
        with self._lock:
            if self._progress is None:
                return
            self._progress.remove_task(task)
            self._open -= 1
            if not self._open:
                self._progress.stop()
                self._progress = None


_DISPLAY = _Display()


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Facts(ProgressColumn):
        """How many are finished, the time left, and what the caller adds."""

        max_refresh = 0.5  # a time that changes with every item cannot be read

        def render(self, task: Task) -> Text:
            return Text(describe(task.fields["bar"]))

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), Facts(table_column=Column(no_wrap=True)))
    return Progress(*columns, console=Console(stderr=True), transient=True)


def describe(bar: Bar) -> str:
    """Return the text behind a bar, such as "12/40  0:01:20 left"."""
    if bar.total is None:
        parts = [f"{bar.done:,}" if bar.done else "", f"{_clock(bar.seconds)} so far"]
    else:
        share = f"{100 * bar.done / max(1, bar.total):.0f} %"
        left = bar.seconds_left
        parts = [
            share if bar.percent else f"{bar.done:,}/{bar.total:,}",
            "" if left is None else f"{_clock(left)} left",
        ]
    return "  ".join(part for part in (*parts, bar.facts) if part)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
