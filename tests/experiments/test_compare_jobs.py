"""Jobs run in the order of their needs; a failure stops only the jobs that need the failed one."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from medmvl.errors import BusyError
from medmvl.experiments.compare import comparison
from medmvl.experiments.compare.jobs import LOG, Job, medmvl_command, run_in_sequence, run_on_ray
from medmvl.files import OutputLock
from waiting import PATIENCE, wait_for


def job(tmp_path, key, code="pass", **settings):
    return Job(key, f"run: {key}", [sys.executable, "-c", code], tmp_path / key, **settings)


def run(jobs, runner=run_in_sequence):
    order = []
    outcomes = runner(jobs, lambda outcome: order.append(outcome.job.key))
    return order, {outcome.job.key: outcome for outcome in outcomes}


def test_needs_come_first_whatever_the_order(tmp_path):
    jobs = [job(tmp_path, "c", needs=("a", "b")), job(tmp_path, "b", needs=("a",)), job(tmp_path, "a")]
    assert run(jobs)[0] == ["a", "b", "c"]


def test_a_failure_stops_what_needs_it_and_nothing_else(tmp_path):
    jobs = [
        job(tmp_path, "bad", "print('why', flush=True); raise SystemExit(3)"),
        job(tmp_path, "child", needs=("bad",)),
        job(tmp_path, "grandchild", needs=("child",)),
        job(tmp_path, "good"),
    ]
    order, outcomes = run(jobs)
    assert order == ["bad", "good"]
    assert {key: outcome.status for key, outcome in outcomes.items()} == {
        "bad": 3,
        "good": 0,
        "child": -1,
        "grandchild": -1,
    }
    assert "why" in (tmp_path / "bad" / LOG).read_text()


def test_finished_jobs_are_skipped_and_dependents_run(tmp_path):
    jobs = [job(tmp_path, "a", "raise SystemExit(1)", done=lambda: True), job(tmp_path, "b", needs=("a",))]
    order, outcomes = run(jobs)
    assert order == ["b"]
    assert outcomes["a"].skipped
    assert outcomes["b"].status == 0


def test_cost_is_measured(tmp_path):
    code = "import time; data = bytearray(60_000_000); time.sleep(0.2)"
    _, outcomes = run([job(tmp_path, "a", code)])
    assert outcomes["a"].seconds >= 0.2
    assert outcomes["a"].peak_memory > 60_000_000


@pytest.mark.slow
def test_ray_runs_jobs_at_a_time_and_respects_needs(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code = "import os, time; data = bytearray(60_000_000); time.sleep(3); print(os.environ['OMP_NUM_THREADS'])"
    jobs = [
        job(tmp_path, "child", needs=("a",)),
        job(tmp_path, "a", code),
        job(tmp_path, "b", code),
        job(tmp_path, "bad", "raise SystemExit(3)", needs=("b",)),
        job(tmp_path, "grandchild", needs=("bad",)),
        job(tmp_path, "old", "raise SystemExit(1)", done=lambda: True),
    ]
    begun = time.monotonic()
    try:
        order, outcomes = run(jobs, run_on_ray)
        seconds = time.monotonic() - begun
    finally:
        ray.shutdown()
    assert {key: outcome.status for key, outcome in outcomes.items()} == {
        "a": 0,
        "b": 0,
        "child": 0,
        "old": 0,
        "bad": 3,
        "grandchild": -1,
    }
    assert set(order) == {"a", "b", "child", "bad"}
    assert order.index("a") < order.index("child")
    assert sum(outcome.seconds for outcome in outcomes.values()) >= 6
    assert outcomes["a"].peak_memory > 60_000_000
    assert (tmp_path / "a" / LOG).read_text().split() == ["3"]
    assert seconds < 120


def test_what_is_shared_is_prepared_right_before_the_command(tmp_path):
    (tmp_path / "a").mkdir()
    prepare = job(tmp_path, "a", "import pathlib; print(pathlib.Path('note').read_text())")
    ready = Job("a", "run: a", [sys.executable, "-c", f"print(open({str(tmp_path / 'note')!r}).read())"], tmp_path / "a",
                before=lambda: (tmp_path / "note").write_text("prepared"))  # fmt: skip
    assert prepare.key == ready.key
    assert run([ready])[1]["a"].status == 0
    assert "prepared" in (tmp_path / "a" / LOG).read_text()


def test_ending_the_runner_ends_its_processes(tmp_path):
    started = tmp_path / "a" / "started"
    code = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(600)"

    def end_soon():
        # Not before the job has started: until then SIGTERM would end pytest itself.
        wait_for(started.exists, what="the job starts")
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=end_soon)
    killer.start()
    begun = time.monotonic()
    spent = []
    with pytest.raises(KeyboardInterrupt):
        run_in_sequence([job(tmp_path, "a", code)], spent.append)
    assert [outcome.status for outcome in spent] == [-signal.SIGTERM]
    killer.join()
    assert time.monotonic() - begun < 2 * PATIENCE  # the job alone would take far longer
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_orphaned_process_is_waited_for(tmp_path):
    noticed, done = tmp_path / "noticed", tmp_path / "a" / "finished"
    code = (  # it is at work until the runner has noticed it
        "import pathlib, sys, time\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
        "pathlib.Path(sys.argv[2]).touch()"
    )
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / LOG).open("ab") as log:  # as a runner that was killed leaves it
        fcntl.flock(log, fcntl.LOCK_EX)
        orphan = subprocess.Popen([sys.executable, "-c", code, str(noticed), str(done)], stdout=log)
    said = []

    def announce(text):
        said.append(text)
        noticed.touch()

    again = job(tmp_path, "a", "raise SystemExit(1)", done=done.exists)
    [outcome] = run_in_sequence([again], lambda outcome: None, announce)
    assert orphan.wait() == 0
    assert outcome.skipped
    assert outcome.status == 0
    assert said == ["wait   run: a: a process of an earlier call is still at work there"]


def test_the_command_line():
    assert medmvl_command("train", "r.yaml")[1:] == ["-m", "medmvl.cli.main", "train", "r.yaml"]
    launched = medmvl_command("train", "r.yaml", processes=2)
    assert launched[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def test_two_comparisons_cannot_share_a_folder(tmp_path, monkeypatch):
    for name in ("load_matrix", "expand"):
        monkeypatch.setattr(comparison, name, lambda *_: None)
    monkeypatch.setattr(comparison, "Plan", lambda *_: SimpleNamespace(runs=[]))
    with OutputLock(tmp_path / "out", folder=True), pytest.raises(BusyError):
        comparison.compare(tmp_path / "matrix.yaml", tmp_path / "out")
