"""The thread that decodes: requests join it at the next step, and leave it when they are answered or cancelled."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from medmvl.inference.decoding import Decoder, Row
from medmvl.serving.server.failures import RequestError, timed_out

logger = logging.getLogger(__name__)


@dataclass
class Times:
    """`time.monotonic()` of what happened to a job; 0: not yet."""

    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0


@dataclass(eq=False)
class Job:
    """The rows of one request, and what happened to them.

    Attributes:
        rows: one per answer.
        deadline: `time.monotonic()` at which it is given up.
        seconds: the time limit, for the message.
        loop: event loop of the request's handler.
        times: of its submission, prefill, first and last token.
        failure: why it ended without an answer.
        wanted: whether somebody still waits for it.
    """

    rows: list[Row]
    deadline: float
    seconds: float
    loop: asyncio.AbstractEventLoop
    times: Times = field(default_factory=Times)
    failure: RequestError | None = None
    wanted: bool = True

    def __post_init__(self) -> None:
        self.changed = asyncio.Event()

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.failure is not None or all(row.finish is not None for row in self.rows)

    def stamp(self, now: float) -> None:
        """Note the time of a token."""
        self.times.first = self.times.first or now
        self.times.last = now


class Scheduler:
    """Owns the decoder, which no other thread may touch.

    Args:
        decoder: of the model.
        batch: most rows that are decoded together.
    """

    def __init__(self, decoder: Decoder, batch: int) -> None:
        self.decoder, self._batch = decoder, batch
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._news = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="medmvl-decoder", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Number of requests that are decoded."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their prefill."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def place(self, job: Job) -> int:
        """Return a waiting job's place in the queue, from 1; 0 if it does not wait."""
        with self._news:
            return next((place for place, other in enumerate(self._waiting, start=1) if other is job), 0)

    def submit(self, job: Job) -> None:
        """Take a job; it joins at the next step if there is room."""
        with self._news:
            self._waiting.append(job)
            self._news.notify()

    def cancel(self, job: Job) -> None:
        """Give a job up; its place is free at the next step."""
        with self._news:
            job.wanted = False
            self._news.notify()

    def close(self) -> None:
        """End the thread."""
        with self._news:
            self._ended = True
            self._news.notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while True:
            with self._news:
                while not (self._waiting or self._running or self._ended):
                    self._news.wait()
                if self._ended:
                    return
            try:
                self._turn()
            except Exception as error:  # a bug or no memory: the open requests fail, later ones are answered
                self._fail_all(error)

    def _turn(self) -> None:
        """Give up what is not wanted, admit what waits, decode one token of every row."""
        self._give_up()
        changed = self._admit()
        if self.decoder.rows:
            self.decoder.step()
            now = time.monotonic()
            for job in self._running:
                job.stamp(now)
            changed += self._running
        self._refuse_broken()
        self._running = [job for job in self._running if not job.done]
        _tell(changed)

    def _refuse_broken(self) -> None:
        """Give up jobs whose constraint cannot be followed further."""
        for job in self._running:
            broken = (row.constraint.failure for row in job.rows if row.constraint is not None)
            if reason := next(filter(None, broken), None):
                for row in job.rows:
                    self.decoder.cancel(row)
                job.failure = RequestError(400, f"The constraint of the answer cannot be followed: {reason}.")

    def _give_up(self) -> None:
        now = time.monotonic()
        late = [job for job in (*self._waiting, *self._running) if not job.wanted or now > job.deadline]
        for job in late:
            for row in job.rows:
                self.decoder.cancel(row)
            job.failure = timed_out(job.seconds) if job.wanted else RequestError(499, "The client has left.")
        with self._news:
            self._waiting = deque(job for job in self._waiting if job.failure is None)
        self._running = [job for job in self._running if job.failure is None]
        _tell(late)

    def _admit(self) -> list[Job]:
        """Prefill waiting jobs while there is room; returns those that have their first token or failed."""
        room = self._batch - len(self.decoder.rows)
        chosen: list[Job] = []
        with self._news:
            # A request with more answers than fit at once still gets its turn when nothing else runs.
            while self._waiting and (len(self._waiting[0].rows) <= room or not (chosen or self.decoder.rows)):
                job = self._waiting.popleft()
                room -= len(job.rows)
                chosen.append(job)
        if not chosen:
            return []
        for job in chosen:
            job.times.started = time.monotonic()
        self._add(chosen)
        now = time.monotonic()
        for job in chosen:
            if job.failure is None:
                job.stamp(now)
                self._running.append(job)
        return chosen

    def _add(self, jobs: Sequence[Job]) -> None:
        """Add the rows of several jobs at once; if that fails, of one job after the other, so that one cannot spoil others."""
        try:
            self.decoder.add([row for job in jobs for row in job.rows])
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs[0], error)
                return
            for job in jobs:
                if not any(row.token_ids for row in job.rows):
                    self._add([job])
                elif not all(row.token_ids for row in job.rows):
                    self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        # The message of an exception may hold content; its type and place do not.
        logger.error("A request failed in the decoder: %s", _place(error))
        for row in job.rows:
            self.decoder.cancel(row)
        job.failure = RequestError(500, "The model could not answer this request.", "server_error")

    def _fail_all(self, error: Exception) -> None:
        jobs = list(self._running)
        for job in jobs:
            self._fail(job, error)
        self._running = []
        self.decoder.reset()
        _tell(jobs)


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__} at {where}"


def _tell(jobs: Sequence[Job]) -> None:
    """Wake the handlers of jobs, with one call per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, theirs in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_set, theirs)


def _set(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.changed.set()
