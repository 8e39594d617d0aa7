"""Calibration on validation records, and the rows of the benchmark `calibration`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmvl.data.dataset import SampleDataset
from medmvl.data.record import to_record
from medmvl.data.roots import MediaRoots
from medmvl.errors import DataError, RecipeError
from medmvl.evaluation.items import Item, make_item
from medmvl.evaluation.metrics.vqa import closed_correct, is_closed
from medmvl.files import PathLike
from medmvl.inference import GenerationOptions, Predictor
from medmvl.inference.answering import Answering, AnswerSettings
from medmvl.inference.batch import encode_answered, run_facts
from medmvl.inference.calibration import TEMPERATURES, Calibration, nll_over_temperatures, threshold_for
from medmvl.inference.confidence import rounded
from medmvl.inference.row_job import RowJob

UNCALIBRATED = "uncalibrated"
CONTROLS = (UNCALIBRATED,)
TARGET = 0.99
_VALIDATION = ("validation.jsonl", "validation.json", "val.jsonl", "validation.parquet")


def fit_calibration(
    predictor: Predictor,
    dataset: SampleDataset,
    *,
    target: float = TARGET,
    batch_size: int = 16,
    scale: bool = True,
    on_row: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Return temperature and threshold for validation records.

    The temperature is the one of `TEMPERATURES` at which the reference answers are most likely. The threshold is the least
    confidence, at that temperature, from which on greedy answers to closed questions reach the target accuracy.

    Args:
        predictor: the model; a calibration that it has is set aside.
        dataset: validation records, none of which the model was trained or tested on.
        target: accuracy of the answers that are given.
        batch_size: records per batch.
        scale: whether a temperature is fitted; else it is 1.
        on_row: called with (records done, in all); every record is counted twice.

    Raises:
        DataError: if no record asks a closed question.
        RecipeError: if the target is not a share.
    """
    if not 0 < target <= 1:
        raise RecipeError(f"The target accuracy must be above 0 and at most 1, got {target}.")
    steps = 2 * len(dataset)

    def report(done: int) -> None:
        if on_row is not None:
            on_row(done, steps)

    losses, tokens = _losses(predictor.with_calibration(Calibration()), dataset, batch_size, report)
    unscaled = TEMPERATURES.index(1.0)
    best = int(losses.argmin()) if scale else unscaled
    scaled = predictor.with_calibration(Calibration(TEMPERATURES[best]))
    answered = answered_items(scaled, dataset, batch_size, lambda done: report(len(dataset) + done))
    items = [item for item in answered if is_closed(item)]
    if not items:
        raise DataError(f"{dataset.path.name} asks no closed question, so there is nothing to choose a threshold by.")
    confidences = [float(item.record["confidence"]) for item in items]
    threshold, coverage = threshold_for(confidences, [closed_correct(item) for item in items], target)
    return Calibration(
        temperature=TEMPERATURES[best],
        threshold=threshold,
        target_accuracy=target,
        coverage=coverage,
        records=len(dataset),
        nll_before=float(losses[unscaled]) / max(tokens, 1),
        nll_after=float(losses[best]) / max(tokens, 1),
    )


def _losses(
    predictor: Predictor, dataset: SampleDataset, batch_size: int, report: Callable[[int], None]
) -> tuple[Tensor, int]:
    """Return the summed loss of all reference answers at each temperature, (G,), and the number of their tokens."""
    losses, tokens = torch.zeros(len(TEMPERATURES), dtype=torch.float64), 0
    for start in range(0, len(dataset), batch_size):
        indices = range(start, min(start + batch_size, len(dataset)))
        encoded = [encode_answered(predictor.processor, dataset, index) for index in indices]
        logits, targets, _ = predictor.supervised_logits(encoded)
        losses, tokens = losses + nll_over_temperatures(logits, targets), tokens + len(targets)
        report(indices.stop)
    return losses, tokens


def answered_items(
    predictor: Predictor, dataset: SampleDataset, batch_size: int, on_done: Callable[[int], None] = lambda done: None
) -> list[Item]:
    """Return the records as items with greedy answers and their confidence."""
    answering = Answering(predictor, dataset, AnswerSettings(GenerationOptions(max_new_tokens=64)))
    order, items = answering.order(), []
    for start in range(0, len(order), batch_size):
        items += [make_item(row) for row in answering(order[start : start + batch_size])]
        on_done(len(items))
    return items


def predict_calibration(
    predictor: Predictor,
    data: PathLike,
    out: PathLike,
    *,
    roots: MediaRoots,
    batch_size: int = 16,
    control: str | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> int:
    """Write a row per record with its calibrated confidence; returns how many were written now.

    Args:
        predictor: the model.
        data: test records; a validation file with other patients is next to it.
        out: JSON Lines file.
        roots: folders of the images and volumes.
        batch_size: records per batch.
        control: "uncalibrated": the temperature is 1, and only a threshold is chosen.
        on_row: called with (rows done, rows in all).

    Raises:
        DataError: if there is no validation file, or it asks no closed question.
    """
    folder = Path(data).parent
    validation = next((folder / name for name in _VALIDATION if (folder / name).is_file()), None)
    if validation is None:
        raise DataError(
            f"The threshold and the temperature are chosen on validation records, and {folder} holds none. Put a file "
            f"{_VALIDATION[0]} with other patients next to {Path(data).name}."
        )
    dataset = SampleDataset(data, roots)
    facts = {**run_facts(predictor, data, {}), "validation": run_facts(predictor, validation, {})["data"]}
    job = RowJob(Path(out), dataset, {**facts, "calibration": control or "fitted"}, on_row)
    if not job.missing():
        return job.run(lambda _: [], batch_size)
    held_out = SampleDataset(validation, roots)
    calibration = fit_calibration(predictor, held_out, batch_size=batch_size, scale=control != UNCALIBRATED)
    calibrated = predictor.with_calibration(calibration)
    answering = Answering(calibrated, dataset, AnswerSettings(GenerationOptions(max_new_tokens=64)))

    def rows(indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        encoded = [encode_answered(calibrated.processor, dataset, index) for index in indices]
        losses = calibrated.calibrated_losses(encoded)
        for index, row, loss in zip(indices, answering(indices), losses, strict=True):
            assert calibration.threshold is not None
            given = float(row["confidence"] >= rounded(calibration.threshold))
            found = {"answered": given, "nll": loss, "temperature": calibration.temperature}
            yield {**to_record(dataset.sample(index)), **row, "measured": found | {"threshold": calibration.threshold}}

    return job.run(rows, batch_size)
