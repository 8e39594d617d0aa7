"""Trains in separate processes: in two ranks at once, or in one that a test kills.

They are forked from a server that has imported everything and done nothing. A fork of the test process itself would
inherit the locks that threads of earlier tests (arrow's, Ray's, a demo's) hold at that moment, and might wait for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

from medmvl.training.engine.callbacks import Callback
from medmvl.training.objectives import LanguageObjective
from medmvl.training.objectives.base import Evaluation
from medmvl.training.run import train
from ports import free_port

_FROM_A_CLEAN_SERVER = multiprocessing.get_context("forkserver")
_FROM_A_CLEAN_SERVER.set_forkserver_preload(["medmvl.training.run"])
#: Seconds after which two ranks have certainly lost each other, also on a busy machine.
_PATIENCE = 400


def in_two_processes(job: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Call `job(*args, **kwargs)`, all of it picklable, in two processes that torch.distributed sees as ranks 0 and 1."""
    port = free_port()
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
    """`train(recipe, out, resume=True)` in a process that needs no start-up time; `subprocess.Popen`'s words for it.

    Args:
        steps: number after which it goes no further, for a kill that comes late on a busy machine; None: it goes to the end.
    """

    def __init__(self, recipe: Path, out: Path, steps: int | None = None) -> None:
        self._process = _start(_train_in_silence, recipe, out, steps)

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int | None:
        self._process.join(_PATIENCE)
        return self._process.exitcode


class Killed(BaseException):
    """Replaces a kill where the test process itself must survive."""


class BeforeStep(Callback):
    """Calls a function before the forward pass of one step.

    Args:
        step: number of steps done before.
        action: what is called, with the loop.
        stage: name of the stage; None: any.
    """

    def __init__(self, step: int, action: Callable[[object], object], stage: str | None = None) -> None:
        self._step, self._action, self._stage = step, action, stage

    def on_step_begin(self, loop):
        if loop.state.step == self._step and self._stage in (None, loop.settings.stage):
            self._action(loop)


class PoisonLoss(Callback):
    """Makes the model's loss NaN in some steps.

    Args:
        steps: numbers of steps done before; None: every step.
        rank: only on this process; None: on all.
    """

    def __init__(self, steps: Collection[int] | None = None, rank: int | None = None) -> None:
        self._steps, self._rank = steps, rank
        self._hook = None

    def on_step_begin(self, loop):
        chosen = self._rank in (None, loop.engine.rank)
        if chosen and (self._steps is None or loop.state.step in self._steps):
            self._hook = loop.engine.module.register_forward_hook(_nan_loss)

    def on_gradients(self, loop):
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _nan_loss(module, inputs, output):
    output.loss = output.loss * float("nan")
    return output


@contextmanager
def killed_before_step(step: int, stage: str | None = None) -> Iterator[tuple[Callback, ...]]:
    """Give callbacks by which a run in the block ends, as by a kill, after a number of steps (of a stage)."""

    def die(loop: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        yield (BeforeStep(step, die, stage),)


def train_until(step: int, recipe: dict, out: Path) -> None:
    """Train, and end the process without a word before the step after `step`."""
    train(recipe, out, callbacks=[BeforeStep(step, lambda loop: os._exit(0))])
    raise AssertionError(f"the run ended before step {step + 1}")


def train_with_a_poisoned_step(bad_step: int, recipe: dict, out: Path) -> None:
    """Train with a loss that is NaN on the second process in one step."""
    train(recipe, out, callbacks=[PoisonLoss((bad_step,), rank=1)])


def train_where_the_first_look_is_the_best(recipe: dict, out: Path) -> None:
    """Train with validation that finds every evaluation worse than the one before."""
    steps: list[int] = []

    def worse_each_time(self, engine, datasets):
        steps.append(1)
        return Evaluation([{"data": "all"}], metrics={"loss": float(len(steps))})

    LanguageObjective.evaluate = worse_each_time
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


class _NoFurther(Callback):
    """Waits to be killed after some steps of this process."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def on_step_begin(self, loop):
        if not self._left:
            time.sleep(_PATIENCE)
        self._left -= 1


def _train_in_silence(recipe: Path, out: Path, steps: int | None) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    train(recipe, out, resume=True, callbacks=[] if steps is None else [_NoFurther(steps)])


def run_in_a_clean_process(job: Callable[..., None], *args: object, seconds: float = _PATIENCE) -> None:
    """Call `job(*args)`, all of it picklable, in a process that may itself fork: it has no threads."""
    process = _start(job, *args)
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0
