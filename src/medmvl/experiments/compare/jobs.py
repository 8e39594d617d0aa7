"""Jobs of a comparison (train a stage, evaluate a run) and two ways to run them: in sequence, or several at a time on Ray."""

from __future__ import annotations

import fcntl
import graphlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from medmvl.errors import require
from medmvl.progress_bar import track

LOG = "compare.log"
#: Seconds that the trainings of an interrupted Ray run have to save a checkpoint.
GRACE = 60.0

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One process to run.

    Attributes:
        key: unique name; `needs` of other jobs refer to it.
        what: description for people ("2d-attn-seed0: stage align").
        command: arguments of the process.
        folder: folder of its output (`compare.log`) and its cost.
        needs: keys of the jobs that must succeed before.
        before: called right before the command, to link shared stages.
        done: whether an earlier call finished the job.
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
    """Result of a job: exit status, seconds and peak memory in bytes; `skipped` if no process was started."""

    job: Job
    status: int
    seconds: float = 0.0
    peak_memory: int = 0
    skipped: bool = False


def run_in_sequence(
    jobs: Sequence[Job], on_outcome: Callable[[Outcome], None], announce: Announce = lambda text: None
) -> list[Outcome]:
    """Run all jobs one after the other, in an order that respects their needs; a job whose need failed is not run.

    Args:
        jobs: in any order; their needs must be among them.
        on_outcome: called after each job that ran.
        announce: called when a job starts and when it ends.

    Returns:
        The outcomes of all jobs; status -1 where a need failed.
    """
    outcomes: dict[str, Outcome] = {}
    with _terminate_as_interrupt():
        for job in track(ordered(jobs), "jobs"):
            failed = any(outcomes[need].status != 0 for need in job.needs)
            outcome = Outcome(job, -1, skipped=True) if failed else run_job(job, announce, on_outcome)
            outcomes[job.key] = outcome
            _report(outcome, on_outcome, announce)
    return list(outcomes.values())


def run_on_ray(
    jobs: Sequence[Job],
    on_outcome: Callable[[Outcome], None],
    announce: Announce = lambda text: None,
    *,
    at_a_time: int = 2,
    gpus_per_job: int = 0,
) -> list[Outcome]:
    """Run jobs on Ray, at most `at_a_time` at once; Ray waits for the needs of a job and assigns GPUs.

    Uses the cluster of RAY_ADDRESS if set, else this machine. The folders must be on storage that all machines share.

    Args:
        jobs, on_outcome, announce: as for `run_in_sequence`.
        at_a_time: jobs at once on this machine; a cluster's own CPUs and GPUs are its limit.
        gpus_per_job: GPUs that each job gets; 0 on a machine without.

    Raises:
        MissingExtraError: without Ray (extra `ray`).
    """
    ray = require("ray", "ray")
    if not ray.is_initialized():
        local = "RAY_ADDRESS" not in os.environ
        with _terminate_as_interrupt():  # restores our handler: Ray installs one for SIGTERM
            ray.init(num_cpus=at_a_time if local else None, include_dashboard=False, log_to_driver=False)
    # Ray would set one thread per task; the folders may be relative to the current one.
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // at_a_time))
    folder = Path.cwd()

    def task(job: Job, *needs: Outcome) -> Outcome:
        os.environ["OMP_NUM_THREADS"] = threads
        os.chdir(folder)
        failed = any(need.status != 0 for need in needs)
        return Outcome(job, -1, skipped=True) if failed else run_job(job)

    remote = ray.remote(num_cpus=1, num_gpus=gpus_per_job, max_retries=0)(task)
    references: dict[str, Any] = {}
    for job in ordered(jobs):
        references[job.key] = remote.remote(job, *(references[need] for need in job.needs))
    outcomes: list[Outcome] = []
    waiting = list(references.values())
    with _terminate_as_interrupt():
        try:
            for _ in track(references, "jobs"):
                finished, waiting = ray.wait(waiting)
                outcomes.append(ray.get(finished[0]))
                _report(outcomes[-1], on_outcome, announce)
        except BaseException:
            for reference in waiting:
                ray.cancel(reference)  # interrupts the task, which stops its process
            ray.wait(waiting, num_returns=max(1, len(waiting)), timeout=GRACE)
            raise
    return outcomes


def _report(outcome: Outcome, on_outcome: Callable[[Outcome], None], announce: Announce) -> None:
    """Pass on the outcome of a job that ran; one that was skipped is not reported."""
    if not outcome.skipped:
        state = "done " if outcome.status == 0 else "FAILED"
        announce(f"{state}  {outcome.job.what} ({outcome.seconds:.0f} s)")
        on_outcome(outcome)


def ordered(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with every job after the ones it needs."""
    by_key = {job.key: job for job in jobs}
    return [by_key[key] for key in graphlib.TopologicalSorter({job.key: job.needs for job in jobs}).static_order()]


def run_job(
    job: Job, announce: Announce = lambda text: None, on_interrupt: Callable[[Outcome], None] = lambda outcome: None
) -> Outcome:
    """Run one job in a separate process group, unless it is done, and wait for it.

    If this process is interrupted, the job's process group gets SIGTERM (a training then saves a checkpoint),
    `on_interrupt` gets the outcome, and the interruption is raised again.
    """
    if job.done():
        return Outcome(job, 0, skipped=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / LOG).open("ab") as log:
        if not _wait_for_lock(job, log, announce):
            return Outcome(job, 0, skipped=True)
        announce(f"start  {job.what}")
        begun = time.monotonic()
        job.before()
        # The process inherits the locked file: the folder stays locked while it lives, even if this process is killed.
        process = subprocess.Popen(job.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status, memory = _wait(process)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            status, memory = _wait(process)
            on_interrupt(Outcome(job, status, time.monotonic() - begun, memory))
            raise
    return Outcome(job, status, time.monotonic() - begun, memory)


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Wait for a process and return (exit status, peak memory in bytes)."""
    # wait4 reports the peak memory of this one process, which Popen.wait does not.
    _, state, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(state)
    return process.returncode, usage.ru_maxrss * 1024


def _wait_for_lock(job: Job, log: IO[bytes], announce: Announce) -> bool:
    """Lock the job's folder, waiting for a process of an earlier call; return whether the job still has to run.

    A runner that was killed (SIGKILL, out of memory) leaves its process alive, and two processes must not write to one
    folder.
    """
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        announce(f"wait   {job.what}: a process of an earlier call is still at work there")
        fcntl.flock(log, fcntl.LOCK_EX)
        return not job.done()
    return True


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, so that running processes are stopped as on Ctrl-C."""
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
