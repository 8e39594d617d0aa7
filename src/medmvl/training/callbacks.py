"""What happens beside the steps: the log, the progress bar, saving, stopping."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medmvl.errors import require
from medmvl.files import atomic

if TYPE_CHECKING:
    from medmvl.training.trainer import StageTrainer


class StageCallback(TrainerCallback):
    """A callback that knows its trainer."""

    trainer: StageTrainer


class StepLog(StageCallback):
    """Writes a line of JSON per optimiser step.

    The line holds `stage`, `step` (from 1), `loss` (nats per supervised token; null if not finite), `lr`, `tokens`
    (of the step, without padding), `positions` (with padding), `supervised` (tokens with a label), `grad_norm`,
    `seconds`; of a skipped step also `skipped` and the `ids` of its records.

    Args:
        path: the run's log.
        stage: name of the stage.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self._path, self._stage = path, stage

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop this stage's lines after the step that the run continues from: they will be written again."""
        if state.is_world_process_zero:
            drop_lines_after(self._path, self._stage, state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """Write the line of the step that just ended."""
        state.log_history.clear()  # it would grow without end in memory and in every checkpoint
        if not state.is_world_process_zero or "loss" not in logs:
            return
        facts = self.trainer.facts
        line: dict[str, Any] = {
            "stage": self._stage,
            "step": state.global_step,
            "loss": _finite(logs["loss"]),
            "lr": logs["learning_rate"],
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
    """Remove a stage's log lines after `step`, and a last line that was cut off when the run was killed."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["stage"] != stage or row["step"] <= step:
            kept.append(line if line.endswith("\n") else line + "\n")
    with atomic(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


#: How often a run without a terminal (a queue's log) says where it is.
SECONDS_BETWEEN_LINES = 60.0


class Bar(StageCallback):
    """A progress bar with the loss, on the error stream of the first process; without a terminal, a line a minute."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._progress: Progress | None = None
        self._said = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        console = Console(stderr=True)
        if not state.is_world_process_zero or not console.is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[facts]}"), console=console)
        self._task = self._progress.add_task(self._stage, total=state.max_steps, completed=state.global_step, facts="")
        self._progress.start()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """Move the bar, or say from time to time where the run is."""
        if not state.is_world_process_zero or "loss" not in logs:
            return
        facts = self.trainer.facts
        rate = facts.tokens / max(time.perf_counter() - facts.started, 1e-9)
        text = f"loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  {rate:,.0f} tokens/s"
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step, facts=text)
        elif time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            line = f"{self._stage}: step {state.global_step} of {state.max_steps}  {text}"
            Console(stderr=True, soft_wrap=True).print(line, highlight=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


class TensorBoard(StageCallback):
    """Writes loss, learning rate, gradient norm and tokens per second for TensorBoard.

    Args:
        folder: where its files go.

    Raises:
        MissingExtraError: if the extra `tensorboard` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """Write the values of the step that just ended."""
        if not state.is_world_process_zero or "loss" not in logs:
            return
        facts = self.trainer.facts
        rate = facts.tokens / max(time.perf_counter() - facts.started, 1e-9)
        values = {"loss": logs["loss"], "lr": logs["learning_rate"], "grad_norm": facts.grad_norm, "tokens_per_s": rate}
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the files."""
        self._writer.close()


class SaveAndStop(StageCallback):
    """Saves every so many steps, and saves and stops when the queue asks for it.

    Args:
        every: optimiser steps between checkpoints. The end of the stage is not one of them: its checkpoint is the
            finished one.
    """

    def __init__(self, every: int) -> None:
        self._every = every

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint when it is time."""
        done = state.global_step >= state.max_steps
        if not done and (state.global_step % self._every == 0 or self.trainer.interrupted):
            control.should_save = True
        if self.trainer.interrupted and not done:
            control.should_training_stop = True
        return control


class StopSignal:
    """Notes a SIGTERM (a queue's "your time is up") or SIGUSR1 (Slurm's early warning) on a trainer.

    Use as a context; outside the main thread it does nothing, since only that thread may set handlers.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else (signal.SIGTERM,)

    def __init__(self, trainer: StageTrainer) -> None:
        self._trainer = trainer
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._trainer.stop_requested = True
        os.write(2, b"Stopping after this step; a checkpoint will be written.\n")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
