"""Experiment trackers (TensorBoard, Weights & Biases, MLflow), by accelerate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

from medmvl.errors import require
from medmvl.training.engine.callbacks import Callback, Loop


class Trackers(Callback):
    """Sends loss, learning rate, gradient norm and tokens per second of every step to experiment trackers.

    The packages' own environment variables apply, such as WANDB_MODE=offline or MLFLOW_TRACKING_URI.

    Args:
        names: "tensorboard", "wandb" or "mlflow"; the extra of that name must be installed.
        project: name of the project or experiment; the run in it is called after the stage.
        folder: of the stage; TensorBoard's files go to `tensorboard` in it, wandb's to `wandb`.

    Raises:
        MissingExtraError: if a tracker's package is not installed.
    """

    def __init__(self, names: Sequence[str], project: str, folder: Path) -> None:
        for name in names:
            require(name, name)
        self._names, self._project, self._folder = names, project, folder
        self._trackers: list[Any] = []

    def on_begin(self, loop: Loop) -> None:
        """Start the trackers on the first process."""
        if loop.engine.rank != 0:
            return
        stage, make = (
            loop.settings.stage,
            {
                "tensorboard": lambda: TensorBoardTracker("tensorboard", self._folder),
                "wandb": lambda: WandBTracker(self._project, name=loop.settings.stage, dir=str(self._folder)),
                "mlflow": lambda: MLflowTracker(self._project, run_name=stage),
            },
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in self._names:
            tracker: Any = make[name]()
            tracker.start()
            self._trackers.append(tracker)

    def on_log(self, loop: Loop) -> None:
        """Send the values of the step."""
        facts = loop.facts
        values = {"loss": facts.loss, "lr": facts.lr, "grad_norm": facts.grad_norm}
        values["tokens_per_s"] = facts.tokens_per_second
        for tracker in self._trackers:
            tracker.log({f"train/{name}": value for name, value in values.items()}, step=loop.state.step)

    def on_end(self, loop: Loop) -> None:
        """Finish the trackers' runs."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers.clear()
