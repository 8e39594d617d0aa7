"""Workers of a pool: they end with the process that made them, and when an error leaves the block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from medmvl.files import process_runs
from medmvl.process_pool import process_pool
from waiting import PATIENCE, wait_for

KILLED = """
import os, sys, time
from medmvl.process_pool import process_pool
if __name__ == "__main__":
    with process_pool(2) as pool:
        print(*[job.result() for job in [pool.submit(os.getpid), pool.submit(os.getpid)]], flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_workers_compute_with_one_thread():
    with process_pool(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = {int(word) for word in parent.stdout.readline().split()}
        assert workers
        os.kill(parent.pid, signal.SIGKILL)
    wait_for(lambda: not any(process_runs(worker) for worker in workers), what="the workers end")


def test_an_error_in_the_block_does_not_wait_for_the_work():
    def fail() -> None:
        with process_pool(1) as pool:
            pool.submit(os.getpid).result()
            pool.submit(time.sleep, 600)
            raise KeyError

    begun = time.monotonic()
    with pytest.raises(KeyError):
        fail()
    assert time.monotonic() - begun < PATIENCE
