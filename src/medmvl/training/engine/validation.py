"""Validation during a stage: metrics on held-out data, the best checkpoint, early stopping."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmvl.data.dataset import SampleDataset
from medmvl.training.engine.callbacks import Callback, Loop, drop_lines_after
from medmvl.training.engine.modes import evaluating

logger = logging.getLogger(__name__)


class Validation(Callback):
    """Evaluates held-out data at intervals, keeps the best checkpoint, and stops if there is no progress.

    Rows go to `evaluation.jsonl` (`stage`, `step`, `data`, `loss`, ...; of several data sets also a row whose `data` is "all", which
    decides which weights are best) and `samples.jsonl` (`stage`, `step`, `data`, `id`, `question`, `answer`, `prediction`, ...). Evaluation draws
    no random numbers, so it does not change the training.

    Args:
        folder: the run folder.
        datasets: name -> held-out records.
        every: optimizer steps between evaluations.
        metric: the objective's metric that selects the best checkpoint; "loss" is minimized, others are maximized.
        patience: evaluations without a better metric after which the stage stops; None: never.
    """

    def __init__(
        self,
        folder: Path,
        datasets: Mapping[str, SampleDataset],
        every: int,
        metric: str = "loss",
        patience: int | None = None,
    ) -> None:
        self._metrics, self._samples = folder / "evaluation.jsonl", folder / "samples.jsonl"
        self._datasets, self._every, self._metric, self._patience = datasets, every, metric, patience

    def on_begin(self, loop: Loop) -> None:
        """Remove rows after the step from which the run continues."""
        if loop.engine.rank == 0:
            for path in (self._metrics, self._samples):
                drop_lines_after(path, loop.settings.stage, loop.state.step)

    def on_step_end(self, loop: Loop) -> None:
        """Evaluate if it is time, and at the end of the stage."""
        state = loop.state
        if state.step % self._every and not loop.is_done:
            return
        value = self._evaluate(loop)
        better = state.best_metric is None or (
            value < state.best_metric if self._metric == "loss" else value > state.best_metric
        )
        if better:
            state.best_metric, state.best_step = value, state.step
            if not loop.is_done:  # the end of a stage is its finished checkpoint
                loop.request_save()
        elif self._patience is not None:
            assert state.best_step is not None
            evaluations = -(-(state.step - state.best_step) // self._every)
            if evaluations >= self._patience:
                logger.warning(
                    "Stage %s stops at step %d: no better %s.", loop.settings.stage, state.step, self._metric
                )
                loop.request_stop()

    def _evaluate(self, loop: Loop) -> float:
        """Write the rows of one evaluation and return the metric that decides."""
        with evaluating(loop.objective.trainable.model):
            found = loop.objective.evaluate(loop.engine, self._datasets)
        if loop.engine.rank == 0:
            where = {"stage": loop.settings.stage, "step": loop.state.step}
            append_rows(self._metrics, [where | row for row in _distinct(found.rows)])
            append_rows(self._samples, [where | row for row in found.samples])
        # The first process may be the only one that generated answers.
        return loop.engine.agreed(float(found.metrics.get(self._metric, 0.0)))


def _distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without the one over all data sets if there is a single set, whose row it repeats."""
    single = [row for row in rows if row["data"] != "all"]
    return single if len(single) == 1 else rows


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a file of JSON Lines."""
    with path.open("a", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
