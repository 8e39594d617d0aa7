"""Callbacks of the training loop: log, progress bar, checkpoints, moving average."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from medmvl.files import BAD_JSON, atomic
from medmvl.progress_bar import Bar, is_shown
from medmvl.training.engine.devices import Engine
from medmvl.training.engine.progress import LoopSettings, LoopState, StepFacts
from medmvl.training.objectives.base import Objective


class Loop(Protocol):
    """The view that callbacks have of the training loop; see `medmvl.training.engine.loop.TrainingLoop`."""

    settings: LoopSettings
    state: LoopState
    facts: StepFacts
    engine: Engine
    objective: Objective
    stop_requested: bool
    interrupted: bool

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""

    def request_save(self) -> None:
        """Write a checkpoint after this step; all processes must call it at the same step."""

    def propose_save(self) -> None:
        """Write a checkpoint after the next step; a single process may call it."""

    def request_stop(self) -> None:
        """End the stage after this step; all processes must call it at the same step."""


class Callback:
    """Base of callbacks; every event does nothing by default. Events come on all processes."""

    def on_begin(self, loop: Loop) -> None:
        """Called before the first step, after a checkpoint was loaded."""

    def on_step_begin(self, loop: Loop) -> None:
        """Called before the forward pass of a step."""

    def on_gradients(self, loop: Loop) -> None:
        """Called when the step's gradients are complete and clipped, before the weights change."""

    def on_step_end(self, loop: Loop) -> None:
        """Called after the weights changed; `loop.state.step` counts the step. May request a checkpoint or the end."""

    def on_log(self, loop: Loop) -> None:
        """Called when the facts of the step are complete, before a checkpoint is written."""

    def on_end(self, loop: Loop) -> None:
        """Called after the last step, also if an error ends the stage."""


class StepLog(Callback):
    """Writes a line of JSON per optimizer step.

    The line holds `stage`, `step` (from 1), `loss` (null if not finite), `lr`, `tokens` (of the step, without padding),
    `positions` (with padding), `supervised` (terms of the loss), `grad_norm`, `seconds`; of a skipped step also `skipped`
    and the `ids` of its records.

    Args:
        path: the run's log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_begin(self, loop: Loop) -> None:
        """Remove this stage's lines after the step from which the run continues; they will be written again."""
        if loop.engine.rank == 0:
            drop_lines_after(self._path, loop.settings.stage, loop.state.step)

    def on_log(self, loop: Loop) -> None:
        """Write the line of the step."""
        if loop.engine.rank != 0:
            return
        facts = loop.facts
        line: dict[str, Any] = {
            "stage": loop.settings.stage,
            "step": loop.state.step,
            "loss": _finite(facts.loss),
            "lr": facts.lr,
            "tokens": facts.tokens,
            "positions": facts.positions,
            "supervised": facts.supervised,
            "grad_norm": _finite(facts.grad_norm),
            "seconds": round(time.perf_counter() - facts.started, 4),
        }
        if facts.skipped:
            line |= {"skipped": True, "ids": facts.suspects()}
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def drop_lines_after(path: Path, stage: str, step: int) -> None:
    """Remove a stage's log lines after `step`, and an incomplete last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line.decode())
            keep = row["stage"] != stage or row["step"] <= step
        except (*BAD_JSON, KeyError, TypeError):
            continue
        if keep:
            kept.append(line + b"\n")
    with atomic(path) as temporary:
        temporary.write_bytes(b"".join(kept))


#: Seconds between two progress lines of a run without a terminal.
SECONDS_BETWEEN_LINES = 60.0


class ProgressBar(Callback):
    """Shows a progress bar with the loss on the error stream of the first process; without a terminal, a line a minute."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._last_line = time.monotonic()

    def on_begin(self, loop: Loop) -> None:
        """Show the bar."""
        if loop.engine.rank == 0 and is_shown():
            self._bar = Bar(loop.settings.stage, loop.settings.steps)
            self._bar.update(loop.state.step)

    def on_log(self, loop: Loop) -> None:
        """Update the bar, or print a line from time to time."""
        if loop.engine.rank != 0:
            return
        facts = loop.facts
        text = f"loss {facts.loss:.4f}  lr {facts.lr:.2e}  {facts.tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(loop.state.step, facts=text)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            line = f"{loop.settings.stage}: step {loop.state.step} of {loop.settings.steps}  {text}"
            Console(stderr=True, soft_wrap=True).print(line, highlight=False)

    def on_end(self, loop: Loop) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


class Checkpoints(Callback):
    """Requests checkpoints at intervals, and a checkpoint and the end when the run is interrupted.

    Args:
        every: optimizer steps between checkpoints. The last step needs none: the finished stage is written there.
        minutes: minutes between checkpoints, measured by the first process; None: only by steps.
    """

    def __init__(self, every: int, minutes: float | None = None) -> None:
        self._every, self._seconds = every, math.inf if minutes is None else 60 * minutes
        self._saved = time.monotonic()

    def on_begin(self, loop: Loop) -> None:
        """Start the clock."""
        self._saved = time.monotonic()

    def on_step_end(self, loop: Loop) -> None:
        """Request a checkpoint if it is due."""
        if loop.is_done:
            return
        if loop.state.step % self._every == 0 or loop.interrupted:
            loop.request_save()
        elif loop.engine.rank == 0 and time.monotonic() - self._saved >= self._seconds:
            loop.propose_save()
        else:
            return
        self._saved = time.monotonic()
        if loop.interrupted:
            loop.request_stop()


class EMA(Callback):
    """An exponential moving average of the trained weights (Polyak averaging).

    The decay of step n is min(decay, (1 + n) / (10 + n)), so that the first weights lose their influence quickly.

    Args:
        decay: of the average.

    Attributes:
        values: parameter name -> average.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self.values: dict[str, torch.Tensor] = {}

    def on_begin(self, loop: Loop) -> None:
        """Start from the weights, unless a checkpoint brought an average."""
        if not self.values:
            self.start(loop)

    def start(self, loop: Loop) -> None:
        """Set the average to the weights."""
        self.values = {name: p.detach().clone() for name, p in loop.objective.trainable.trainable().items()}

    def on_step_end(self, loop: Loop) -> None:
        """Move the average towards the new weights."""
        decay = min(self._decay, (1 + loop.state.step) / (10 + loop.state.step))
        for name, parameter in loop.objective.trainable.trainable().items():
            self.values[name].lerp_(parameter.detach(), 1 - decay)

    def apply(self, loop: Loop) -> None:
        """Copy the average into the model."""
        with torch.no_grad():
            for name, parameter in loop.objective.trainable.trainable().items():
                parameter.copy_(self.values[name])
