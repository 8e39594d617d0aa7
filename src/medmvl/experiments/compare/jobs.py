"""What a comparison does, as jobs with needs: train a stage, evaluate a run; and the running of them, some at a time."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

LOG = "compare.log"


@dataclass(frozen=True)
class Job:
    """One process to run.

    Attributes:
        key: unique name; `needs` of other jobs refer to it.
        what: for people ("2d-attn-seed0: stage align").
        command: arguments of the process; None for a job that only prepares.
        folder: where its output goes (`compare.log`) and its cost is noted.
        needs: keys of the jobs that must be done before.
        before: called in this process right before the command, to link what is shared.
        done: whether the job was finished by an earlier call.
    """

    key: str
    what: str
    command: Sequence[str]
    folder: Path
    needs: tuple[str, ...] = ()
    before: Callable[[], None] = lambda: None
    done: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Outcome:
    """How a job ended: seconds and peak memory (bytes) of its process, and its exit status."""

    job: Job
    status: int
    seconds: float = 0.0
    peak_memory: int = 0
    skipped: bool = False


@dataclass
class Workers:
    """Runs jobs as processes, at most `slots` at a time, each in a process group of its own.

    Attributes:
        slots: processes at a time.
        devices: per slot the value of CUDA_VISIBLE_DEVICES; empty on a machine without.
        announce: called when a job starts and when it ends.
    """

    slots: int = 1
    devices: Sequence[str] = ()
    announce: Callable[[str], None] = lambda text: None
    _running: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, jobs: Sequence[Job], on_outcome: Callable[[Outcome], None]) -> list[Outcome]:
        """Run all jobs in an order that respects their needs; what needs a failed job is not run.

        Args:
            jobs: in any order; their needs must be among them.
            on_outcome: called in this thread for each job that ran, as it ends.

        Returns:
            The outcomes of all jobs; `skipped` where an earlier call had finished the job, status -1 where a need failed.
        """
        outcomes: dict[str, Outcome] = {}
        waiting = {job.key: job for job in jobs}
        free = list(range(self.slots))
        active: dict[Future[Outcome], int] = {}
        with ThreadPoolExecutor(self.slots) as pool, _terminate_as_interrupt():
            try:
                while waiting or active:
                    self._settle(waiting, outcomes)
                    for job in [job for job in waiting.values() if all(need in outcomes for need in job.needs)]:
                        if not free:
                            break
                        slot = free.pop()
                        active[pool.submit(self._one, waiting.pop(job.key), slot)] = slot
                    if not active:
                        continue
                    for future in wait(active, return_when=FIRST_COMPLETED).done:
                        free.append(active.pop(future))
                        outcome = future.result()
                        outcomes[outcome.job.key] = outcome
                        on_outcome(outcome)
            except BaseException:
                self.stop()
                for future in active:
                    on_outcome(future.result())  # what was spent until now was spent
                raise
        return list(outcomes.values())

    @staticmethod
    def _settle(waiting: dict[str, Job], outcomes: dict[str, Outcome]) -> None:
        """Settle the jobs that are done already, and those that will never be able to run."""
        changed = True
        while changed:
            changed = False
            for job in list(waiting.values()):
                failed = [need for need in job.needs if need in outcomes and outcomes[need].status != 0]
                ready = all(need in outcomes for need in job.needs)
                if failed or (ready and job.done()):
                    outcomes[job.key] = Outcome(job, -1 if failed else 0, skipped=True)
                    del waiting[job.key]
                    changed = True

    def _one(self, job: Job, slot: int) -> Outcome:
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / LOG).open("ab") as log:
            if not self._alone(job, log.fileno()):
                return Outcome(job, 0, skipped=True)
            self.announce(f"start  {job.what}")
            begun = time.monotonic()
            job.before()
            # The process inherits the locked file, so the folder stays locked for as long as it lives, also without us.
            process = subprocess.Popen(
                job.command, stdout=log, stderr=subprocess.STDOUT, env=self._environment(slot), start_new_session=True
            )
            with self._lock:
                self._running.add(process.pid)
            if self._stopping.is_set():  # asked to stop between the two lines above
                self.stop()
            # wait4 tells the peak memory of this one process, which Popen.wait does not.
            _, state, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(state)
            with self._lock:
                self._running.discard(process.pid)
        seconds = time.monotonic() - begun
        self.announce(f"{'done ' if process.returncode == 0 else 'FAILED'}  {job.what} ({seconds:.0f} s)")
        return Outcome(job, process.returncode, seconds, usage.ru_maxrss * 1024)

    def _alone(self, job: Job, log: int) -> bool:
        """Wait until no process of an earlier call is at work in the job's folder; return whether there is still work.

        A runner that was killed outright (SIGKILL, out of memory) leaves its processes alive, and two of them in one
        folder would spoil it.
        """
        waited = False
        while not self._stopping.is_set():
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    self.announce(f"wait   {job.what}: a process of an earlier call is still at work there")
                waited = True
                time.sleep(1)
                continue
            return not (waited and job.done())
        return False

    def _environment(self, slot: int) -> dict[str, str]:
        environment = dict(os.environ)
        threads = max(1, (os.cpu_count() or 1) // self.slots)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot]
        return environment

    def stop(self) -> None:
        """Ask every running process group to stop; a training saves a checkpoint first."""
        self._stopping.set()
        with self._lock:
            for pid in self._running:
                os.killpg(pid, signal.SIGTERM)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Make SIGTERM end the run the way Ctrl-C does, so that the processes it started are asked to stop, too."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def medmvl_command(*arguments: Any, processes: int = 1) -> list[str]:
    """Return the command line of `medmvl ...` in this Python, under torchrun for several processes."""
    words = ["-m", "medmvl.cli.main", *map(str, arguments)]
    if processes == 1:
        return [sys.executable, *words]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, *words]
