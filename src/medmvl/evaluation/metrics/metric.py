"""Metrics, defined by per-item statistics and a function of their sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from medmvl.evaluation.items import Item
from medmvl.evaluation.statistics import Aggregate, Floats

Rows = Sequence[Sequence[float] | None]
"""Per item its K statistics, or None where the metric's definition leaves the item out."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A scorer with a stated definition.

    Attributes:
        name: unique name of the definition ("bleu1-coco-corpus-ptb"); the key in results.json may be shorter.
        definition: one or two sentences: tokens, formula, averaging, and source.
        rows: items -> per-item statistics, in the order of the items.
        aggregate: (..., K) sums of the statistics -> value in [0, 1] (unless the definition says otherwise).
        version: raised whenever a score could change.
        item_means: whether the value of a single item is meaningful (False for CIDEr and label F1).
    """

    name: str
    definition: str
    rows: Callable[[Sequence[Item]], Rows]
    aggregate: Aggregate
    version: str = "1"
    item_means: bool = True

    def described(self, definition: str) -> Metric:
        """Return the metric with a more exact definition."""
        return replace(self, definition=definition)


def mean_of_sums(sums: Floats) -> Floats:
    """Aggregate of a mean: (..., 2) sums of value and count -> (...)."""
    return ratio(sums[..., 0], sums[..., 1])


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide elementwise, arrays of equal shape; nan where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, np.divide(numerator, denominator))


# Short answers repeat: of 50 000, a few hundred pairs of texts are different, and each is scored once.
cached = lru_cache(maxsize=1 << 16)


def text_metric(name: str, definition: str, score: Callable[[str, str], float], version: str = "1") -> Metric:
    """Make a metric that is the mean of a score of (answer, reference) as the word-level metrics read them."""
    known = cached(score)
    return mean_metric(name, definition, lambda item: known(item.hypothesis, item.target), version)


def mean_metric(name: str, definition: str, score: Callable[[Item], float | None], version: str = "1") -> Metric:
    """Make a metric that is the mean of a per-item score; an item whose score is None is left out and counted."""

    def rows(items: Sequence[Item]) -> Rows:
        scores = map(score, items)
        return [None if value is None else (value, 1.0) for value in scores]

    return Metric(name, definition, rows, mean_of_sums, version)


def mean_over_types(metric: Metric, types: Sequence[str]) -> Metric:
    """Return a metric of means as the mean over question types: the mean of each type, then the mean of those.

    Types without an item do not count; an item whose `question_type` is none of `types` is left out.

    Args:
        metric: made by `mean_metric` or `text_metric`.
        types: values of the record's `question_type`.
    """
    places = {name: place for place, name in enumerate(types)}

    def rows(items: Sequence[Item]) -> Rows:
        return [
            _placed(row, places.get(str(item.record.get("question_type"))))
            for item, row in zip(items, metric.rows(items), strict=True)
        ]

    def _placed(row: Sequence[float] | None, place: int | None) -> list[float] | None:
        if row is None or place is None:
            return None
        placed = [0.0] * (2 * len(types))
        placed[2 * place : 2 * place + 2] = row
        return placed

    def aggregate(sums: Floats) -> Floats:
        means = ratio(sums[..., 0::2], sums[..., 1::2])
        known = ~np.isnan(means)
        return ratio(np.where(known, means, 0.0).sum(axis=-1), known.sum(axis=-1))

    definition = (
        f"{metric.definition} Mean over the question types ({', '.join(types)}) of the mean of each type (Med-2E3)."
    )
    return Metric(f"{metric.name}-over-types", definition, rows, aggregate, metric.version)
