"""Scores of a set of answers, with an interval per column, and differences between two sets of answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medmvl.evaluation.items import Item, group_by_patient
from medmvl.evaluation.metrics.metric import Metric
from medmvl.evaluation.statistics import Aggregate, Floats, PairedTest, bootstrap_interval, cluster_sums, paired_test
from medmvl.evaluation.tasks.benchmark import Benchmark, Column


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


@dataclass(frozen=True, slots=True)
class Table:
    """Per-item statistics of one metric.

    Attributes:
        items: all items that the metric received.
        rows: (N, K) statistics of the items it keeps.
        kept: positions of those in `items`, length N.
        aggregate: the metric as a function of summed rows.
    """

    items: list[Item]
    rows: Floats
    kept: list[int]
    aggregate: Aggregate

    @classmethod
    def of(cls, metric: Metric, items: list[Item]) -> Table:
        """Compute the statistics of `items`."""
        rows = metric.rows(items)
        kept = [position for position, row in enumerate(rows) if row is not None]
        return cls(items, np.array([rows[p] for p in kept], dtype=np.float64), kept, metric.aggregate)

    def only(self, belongs: Callable[[Item], bool]) -> Table:
        """Return the table of the items that belong; their statistics are not computed again."""
        inside = [belongs(item) for item in self.items]
        places = np.cumsum(inside) - 1
        chosen = [row for row, position in enumerate(self.kept) if inside[position]]
        items = [item for item, belonging in zip(self.items, inside, strict=True) if belonging]
        return Table(items, self.rows[chosen], [int(places[self.kept[row]]) for row in chosen], self.aggregate)

    def kept_items(self) -> list[Item]:
        """Return the items behind the rows."""
        return [self.items[position] for position in self.kept]

    def score(self, *, interval: bool = True) -> Score:
        """Return the value of the metric over all rows, with a bootstrap interval if wanted."""
        empty = sum(not item.prediction.strip() for item in self.items)
        dropped = len(self.items) - len(self.kept)
        if not self.kept:
            return Score(math.nan, 0, None, dropped, empty)
        sums = cluster_sums(self.rows, list(group_by_patient(self.kept_items()).values()))
        value = float(self.aggregate(sums.sum(axis=0)))
        ci95 = bootstrap_interval(sums, self.aggregate) if interval else None
        return Score(value, len(self.kept), ci95, dropped, empty)


class Answers:
    """One run's items, with the statistics of every column computed once and used by table, breakdown and tests."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self._tables: dict[tuple[str, str], Table] = {}

    def table(self, column: Column) -> Table:
        """Return the statistics of a column over the items it selects."""
        key = (column.key, column.metric.name)
        if key not in self._tables:
            self._tables[key] = Table.of(column.metric, column.select(self.items))
        return self._tables[key]

    def predictions(self) -> dict[str, str]:
        """Return {id: prediction}."""
        return {item.id: item.prediction for item in self.items}


def score_metric(metric: Metric, items: Sequence[Item], *, interval: bool = True) -> Score:
    """Score items with one metric; their order does not matter."""
    return Table.of(metric, list(items)).score(interval=interval)


def score_columns(
    benchmark: Benchmark, answers: Answers, belongs: Callable[[Item], bool] | None = None
) -> dict[str, Score]:
    """Score every column of a benchmark that has items; columns without any are left out.

    Args:
        benchmark: the columns.
        answers: the items.
        belongs: score only these items.
    """
    scores = {}
    for column in benchmark.columns:
        table = answers.table(column)
        if belongs is not None:
            table = table.only(belongs)
        if table.items:
            scores[column.key] = table.score()
    return scores


def defined(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    """Return the entries for results.json of the scores that are numbers."""
    return {key: score.to_dict() for key, score in scores.items() if not math.isnan(score.value)}


def item_scores(column: Column, answers: Answers) -> dict[str, float]:
    """Return {id: the column's value for this item alone}, for a gallery; items it does not score are left out."""
    table = answers.table(column)
    if not table.kept:
        return {}
    values = np.atleast_1d(table.aggregate(table.rows))
    return {item.id: float(value) for item, value in zip(table.kept_items(), values, strict=True)}


def compare_answers(column: Column, first: Answers, second: Answers) -> PairedTest | None:
    """Test the difference of two runs on the items that both answered; None if they share none.

    An item that the metric drops in one run is left out of both, so that the test stays paired.
    """
    mine, theirs = first.table(column), second.table(column)
    place = {item.id: row for row, item in enumerate(theirs.kept_items())}
    pairs = [(row, place[item.id], item) for row, item in enumerate(mine.kept_items()) if item.id in place]
    if not pairs or mine.rows.shape[1] != theirs.rows.shape[1]:
        return None
    clusters = list(group_by_patient([item for _, _, item in pairs]).values())
    my_sums = cluster_sums(mine.rows[[row for row, _, _ in pairs]], clusters)
    their_sums = cluster_sums(theirs.rows[[row for _, row, _ in pairs]], clusters)
    return paired_test(my_sums, their_sums, mine.aggregate, len(pairs))
