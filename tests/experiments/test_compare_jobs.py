"""Jobs run in the order of their needs, some at a time; a failure stops only what needs it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from medmvl.experiments.compare.jobs import LOG, Job, Workers, medmvl_command


def job(tmp_path, key, code="pass", **settings):
    return Job(key, f"run: {key}", [sys.executable, "-c", code], tmp_path / key, **settings)


def run(jobs, slots=1):
    order = []
    outcomes = Workers(slots).run(jobs, lambda outcome: order.append(outcome.job.key))
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


def test_what_is_done_is_not_run_again_and_what_needs_it_runs(tmp_path):
    jobs = [job(tmp_path, "a", "raise SystemExit(1)", done=lambda: True), job(tmp_path, "b", needs=("a",))]
    order, outcomes = run(jobs)
    assert order == ["b"]
    assert outcomes["a"].skipped
    assert outcomes["b"].status == 0


def test_slots_run_side_by_side_and_cost_is_measured(tmp_path):
    code = "import time; data = bytearray(60_000_000); time.sleep(0.6)"
    begun = time.monotonic()
    _, outcomes = run([job(tmp_path, key, code) for key in "ab"], slots=2)
    overlap = sum(outcome.seconds for outcome in outcomes.values()) - (time.monotonic() - begun)
    assert overlap > 0.3  # one after the other there would be none
    assert all(outcome.seconds >= 0.6 for outcome in outcomes.values())
    assert all(outcome.peak_memory > 60_000_000 for outcome in outcomes.values())


def test_what_is_shared_is_prepared_right_before_the_command(tmp_path):
    (tmp_path / "a").mkdir()
    prepare = job(tmp_path, "a", "import pathlib; print(pathlib.Path('note').read_text())")
    ready = Job("a", "run: a", [sys.executable, "-c", f"print(open({str(tmp_path / 'note')!r}).read())"], tmp_path / "a",
                before=lambda: (tmp_path / "note").write_text("prepared"))  # fmt: skip
    assert prepare.key == ready.key
    assert run([ready])[1]["a"].status == 0
    assert "prepared" in (tmp_path / "a" / LOG).read_text()


def test_a_slot_sees_its_own_gpus_and_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"
    Workers(2, ["0,1", "2,3"]).run([job(tmp_path, key, code) for key in "ab"], lambda outcome: None)
    seen = {(tmp_path / key / LOG).read_text().split()[0] for key in "ab"}
    assert seen <= {"0,1", "2,3"}
    assert seen


def test_ending_the_runner_ends_its_processes(tmp_path):
    started = tmp_path / "a" / "started"
    code = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(60)"

    def end_soon():
        for _ in range(200):
            time.sleep(0.05)
            if started.exists():
                break
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=end_soon)
    killer.start()
    begun = time.monotonic()
    spent = []
    with pytest.raises(KeyboardInterrupt):
        Workers(1).run([job(tmp_path, "a", code)], spent.append)
    assert [outcome.status for outcome in spent] == [-signal.SIGTERM]
    killer.join()
    assert time.monotonic() - begun < 20
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_process_that_outlived_its_runner_is_waited_for_not_joined(tmp_path):
    done = tmp_path / "a" / "finished"
    code = f"import pathlib, time; time.sleep(2.5); pathlib.Path({str(done)!r}).touch()"
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / LOG).open("ab") as log:  # as a runner that was killed leaves it
        fcntl.flock(log, fcntl.LOCK_EX)
        orphan = subprocess.Popen([sys.executable, "-c", code], stdout=log)
    said = []
    again = job(tmp_path, "a", "raise SystemExit(1)", done=done.exists)
    [outcome] = Workers(1, announce=said.append).run([again], lambda outcome: None)
    assert orphan.wait() == 0
    assert outcome.skipped
    assert outcome.status == 0
    assert said == ["wait   run: a: a process of an earlier call is still at work there"]


def test_the_command_line():
    assert medmvl_command("train", "r.yaml")[1:] == ["-m", "medmvl.cli.main", "train", "r.yaml"]
    launched = medmvl_command("train", "r.yaml", processes=2)
    assert launched[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
