"""Metrics of numbers that were measured when a record was answered, and of confidences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.metric import Metric, Rows, mean_metric, ratio
from medmvl.evaluation.metrics.vqa import closed_correct
from medmvl.evaluation.statistics import Floats

BINS = 10


def measured(item: Item, key: str) -> float | None:
    """Return a number under `measured` of an item's row; None if it has none."""
    values = item.record.get("measured")
    value = values.get(key) if isinstance(values, Mapping) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def mean_of_measured(key: str, name: str, definition: str) -> Metric:
    """Return the metric that is the mean of a measured number."""
    return mean_metric(name, definition, lambda item: measured(item, key))


def confidence_of(item: Item) -> float | None:
    """Return the confidence of an item's answer, between 0 and 1; None if its row has none."""
    value = item.record.get("confidence")
    return min(1.0, max(0.0, float(value))) if isinstance(value, int | float) and math.isfinite(value) else None


def _brier(item: Item) -> float | None:
    confidence = confidence_of(item)
    return None if confidence is None else (confidence - closed_correct(item)) ** 2


BRIER = mean_metric(
    "brier-of-the-answer",
    "Mean squared difference of the answer's confidence and whether it is right, 1 or 0 (Brier 1950, for the event "
    "'the answer is right'). Lower is better.",
    _brier,
)


def _bin_rows(items: Sequence[Item]) -> Rows:
    """Return per item, for each bin, the sums of confidence and of right answers, and at the end a count."""
    rows: list[Sequence[float] | None] = []
    for item in items:
        confidence = confidence_of(item)
        if confidence is None:
            rows.append(None)
            continue
        row = [0.0] * (2 * BINS + 1)
        place = min(int(confidence * BINS), BINS - 1)
        row[2 * place : 2 * place + 2] = confidence, closed_correct(item)
        row[-1] = 1.0
        rows.append(row)
    return rows


def _expected_error(sums: Floats) -> Floats:
    gaps = np.abs(sums[..., 0:-1:2] - sums[..., 1:-1:2]).sum(-1)
    return ratio(gaps, sums[..., -1])


ECE = Metric(
    "ece-10-bins",
    "Expected calibration error: mean over ten bins of equal width of |mean confidence - accuracy|, weighted by their share of "
    "answers (Naeini et al. 2015). Lower is better.",
    _bin_rows,
    _expected_error,
    item_means=False,
)


def _selective_rows(items: Sequence[Item]) -> Rows:
    """Return per item whether it is answered and right, whether it is answered, and 1."""
    rows: list[Sequence[float] | None] = []
    for item in items:
        answered = measured(item, "answered")
        rows.append(None if answered is None else (answered * closed_correct(item), answered, 1.0))
    return rows


COVERAGE = Metric(
    "coverage-at-threshold",
    "Share of questions whose answer has at least the confidence that was chosen on validation data.",
    _selective_rows,
    lambda sums: ratio(sums[..., 1], sums[..., 2]),
)
SELECTIVE_ACCURACY = Metric(
    "accuracy-at-threshold",
    "Accuracy of the answers with at least the confidence that was chosen on validation data; the others do not count.",
    _selective_rows,
    lambda sums: ratio(sums[..., 0], sums[..., 1]),
    item_means=False,
)
NLL = mean_of_measured(
    "nll",
    "nll-of-the-reference",
    "Mean negative log-likelihood in nats per token of the reference answer, at the temperature in use. Lower is better.",
)
