"""What a metric is: per-item statistics, and a function of their sums."""

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
        definition: one or two sentences: tokens, formula, averaging, whose it is.
        rows: items -> per-item statistics, in the order of the items.
        aggregate: (..., K) sums of the statistics -> value in [0, 1] (unless the definition says otherwise).
        version: raised whenever a score could change.
        item_means: whether the per-item value has a meaning of its own (False for CIDEr and label F1).
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
    """Divide, nan where the denominator is 0."""
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
