"""Trains in processes of their own: in two ranks at once, or in one that a test kills.

They are forked from a server that has imported everything and done nothing. A fork of the test process itself would
inherit the locks that threads of earlier tests (arrow's, Ray's, a demo's) hold at that moment, and might wait for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

from medmvl.training.run import train
from medmvl.training.trainer import StageTrainer
from medmvl.training.watch import Watch

_FROM_A_CLEAN_SERVER = multiprocessing.get_context("forkserver")
_FROM_A_CLEAN_SERVER.set_forkserver_preload(["medmvl.training.run"])
#: Seconds after which two ranks have certainly lost each other.
_PATIENCE = 150


def in_two_processes(job: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Call `job(*args, **kwargs)`, all of it picklable, in two processes that torch.distributed sees as ranks 0 and 1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [_start(_as_rank, rank, port, partial(job, *args, **kwargs)) for rank in range(2)]
    end = time.monotonic() + _PATIENCE
    try:
        # As torchrun does: when one has failed, the other would wait for it for ever.
        while any(rank.exitcode is None for rank in ranks) and not any(rank.exitcode for rank in ranks):
            assert time.monotonic() < end, f"two ranks were not done after {_PATIENCE} seconds"
            time.sleep(0.01)
        assert [rank.exitcode for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()


class TrainingProcess:
    """`train(recipe, out, resume=True)` in a process that needs no start-up time; `subprocess.Popen`'s words for it."""

    def __init__(self, recipe: Path, out: Path) -> None:
        self._process = _start(_train_in_silence, recipe, out)

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int | None:
        self._process.join(_PATIENCE)
        return self._process.exitcode


class Killed(BaseException):
    """Stands for a kill where the process itself must survive to go on testing."""


@contextmanager
def killed_before_step(step: int, stage: str | None = None) -> Iterator[None]:
    """Let the run in the block end, as by a kill, when so many steps (of a stage, or of the first one) are done."""
    original = StageTrainer.training_step

    def die(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step and stage in (None, Path(self.args.output_dir).parent.name):
            raise Killed
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", die)
        with pytest.raises(Killed):
            yield


def train_until(step: int, recipe: dict, out: Path) -> None:
    """Train, and end the process without a word before the step after `step`."""
    original = StageTrainer.training_step

    def die(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step:
            os._exit(0)
        return original(self, *args, **kwargs)

    StageTrainer.training_step = die
    train(recipe, out)
    raise AssertionError(f"the run ended before step {step + 1}")


def train_where_the_first_look_is_the_best(recipe: dict, out: Path) -> None:
    """Train with a watch that finds every look worse than the one before."""
    Watch._evaluate = lambda self, state: float(state.global_step)
    train(recipe, out)


def _start(job: Callable[..., None], *args: object) -> ForkServerProcess:
    process = _FROM_A_CLEAN_SERVER.Process(target=job, args=args, daemon=False)
    process.start()
    return process


def _as_rank(rank: int, port: int, job: Callable[[], object]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    status = 1
    try:
        job()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        sys.stderr.flush()
        os._exit(status)  # nothing that still runs in a thread keeps a rank alive


def _train_in_silence(recipe: Path, out: Path) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    train(recipe, out, resume=True)
