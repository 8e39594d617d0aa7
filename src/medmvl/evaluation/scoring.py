"""Items to numbers: every column of a benchmark with its interval, and differences between two sets of answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medmvl.evaluation.items import Item, group_by_patient
from medmvl.evaluation.metrics.base import Metric
from medmvl.evaluation.statistics import Floats, PairedTest, bootstrap_interval, cluster_sums, paired_test
from medmvl.evaluation.tasks.base import Benchmark, Column


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one set of answers.

    Attributes:
        value: the metric; nan where its definition gives none (no finding on either side, nothing left after drops).
        n: items behind it.
        ci95: 95 % bootstrap interval over patients; None with fewer than two patients.
        dropped: items that the metric's definition leaves out.
        empty: empty answers among the items (they count as wrong unless they are among the dropped).
    """

    value: float
    n: int
    ci95: tuple[float, float] | None
    dropped: int
    empty: int

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of results.json: value, n, ci95."""
        return {"value": self.value, "n": self.n, "ci95": None if self.ci95 is None else list(self.ci95)}


def _statistics(metric: Metric, items: Sequence[Item]) -> tuple[list[Item], Floats]:
    """Return the items that the metric keeps and their (N, K) statistics."""
    rows = metric.rows(items)
    kept = [(item, row) for item, row in zip(items, rows, strict=True) if row is not None]
    return [item for item, _ in kept], np.array([row for _, row in kept], dtype=np.float64)


def score_metric(metric: Metric, items: Sequence[Item], *, interval: bool = True) -> Score:
    """Score items with one metric.

    Args:
        metric: the definition.
        items: the items it applies to; the order does not matter.
        interval: whether to bootstrap an interval.
    """
    empty = sum(not item.prediction.strip() for item in items)
    kept, rows = _statistics(metric, items)
    if not kept:
        return Score(math.nan, 0, None, len(items), empty)
    sums = cluster_sums(rows, list(group_by_patient(kept).values()))
    value = float(metric.aggregate(sums.sum(axis=0)))
    ci95 = bootstrap_interval(sums, metric.aggregate) if interval else None
    return Score(value, len(kept), ci95, len(items) - len(kept), empty)


def score_columns(benchmark: Benchmark, items: list[Item], *, interval: bool = True) -> dict[str, Score]:
    """Score every column of a benchmark that has items; columns without any are left out."""
    scores = {}
    for column in benchmark.columns:
        selected = column.select(items)
        if selected:
            scores[column.key] = score_metric(column.metric, selected, interval=interval)
    return scores


def defined(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    """Return the entries for results.json of the scores that are numbers."""
    return {key: score.to_dict() for key, score in scores.items() if not math.isnan(score.value)}


def item_scores(column: Column, items: list[Item]) -> dict[str, float]:
    """Return {id: the column's value for this item alone}, for a gallery; items it does not score are left out."""
    kept, rows = _statistics(column.metric, column.select(items))
    return {item.id: float(column.metric.aggregate(row)) for item, row in zip(kept, rows, strict=True)}


def compare_answers(column: Column, first: list[Item], second: list[Item]) -> PairedTest | None:
    """Test the difference of two runs on the items that both answered; None if they share none.

    An item that the metric drops in one run is left out of both, so the pairs stay pairs.
    """
    others = {item.id: item for item in second}
    shared = [item for item in column.select(first) if item.id in others]
    rows = column.metric.rows(shared)
    other_rows = column.metric.rows([others[item.id] for item in shared])
    triples = [t for t in zip(shared, rows, other_rows, strict=True) if t[1] is not None and t[2] is not None]
    if not triples:
        return None
    clusters = list(group_by_patient([item for item, _, _ in triples]).values())
    sums = [cluster_sums(np.array([t[side] for t in triples], dtype=np.float64), clusters) for side in (1, 2)]
    return paired_test(sums[0], sums[1], column.metric.aggregate, len(triples))
