"""Confidence intervals and paired tests that resample patients, not questions.

Every metric of this package is a function of *sums over items* of per-item statistics (a mean is a sum and a count, corpus
BLEU is matches, lengths and totals, F1 is counts per label). So one bootstrap serves all: resample patients, add up
their sums, apply the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Aggregate = Callable[[Floats], Floats]
"""(..., K) sums over items -> (...) values of the metric; nan where the metric is not defined."""

RESAMPLES = 1000
LEVEL = 0.95
SEED = 20250
_CHUNK = 100  # resamples drawn at once: bounds the memory at 100 x patients
_KEPT_GROUPS = 2000  # up to this many clusters the draws are kept for the next metric (16 MB each)


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The difference of two runs on the same items: a minus b.

    Attributes:
        difference: value of run a minus value of run b.
        ci95: bootstrap interval of the difference over patients; None with fewer than two patients.
        p_value: two-sided approximate-randomization p-value (runs swapped patient by patient).
        n: items that both runs answered.
    """

    difference: float
    ci95: tuple[float, float] | None
    p_value: float | None
    n: int


def cluster_sums(rows: Floats, clusters: list[list[int]]) -> Floats:
    """Add up the (N, K) per-item statistics per cluster: (G, K)."""
    return np.stack([rows[positions].sum(axis=0) for positions in clusters])


def bootstrap_interval(
    sums: Floats, aggregate: Aggregate, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of `aggregate` over resampled clusters.

    Args:
        sums: (G, K) statistics summed per cluster, in an order that does not depend on the order of the rows.
        aggregate: the metric as a function of the K sums.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling; equal seeds give equal intervals.

    Returns:
        (low, high), or None where it is not defined: fewer than two clusters, or a metric that never is.
    """
    if len(sums) < 2:
        return None
    return _interval(aggregate(_resampled(sums, resamples, seed)))


def paired_test(
    first: Floats, second: Floats, aggregate: Aggregate, n: int, *, resamples: int = RESAMPLES, seed: int = SEED
) -> PairedTest:
    """Compare two runs on the same clusters.

    Args:
        first: (G, K) statistics of run a, summed per cluster.
        second: (G, K) statistics of run b, same clusters in the same order.
        aggregate: the metric as a function of the K sums.
        n: number of items behind them, for the record.
        resamples: bootstrap resamples and random swaps.
        seed: seed of both.

    The interval resamples patients for both runs together. The p-value swaps the runs of randomly chosen patients
    (approximate randomization, Noreen 1989) and counts how often the difference is at least as large as the real one.
    """
    difference = float(aggregate(first.sum(axis=0)) - aggregate(second.sum(axis=0)))
    if len(first) < 2:
        return PairedTest(difference, None, None, n)
    width = first.shape[1]
    both = _resampled(np.concatenate([first, second], axis=1), resamples, seed)
    interval = _interval(aggregate(both[:, :width]) - aggregate(both[:, width:]))
    generator = np.random.default_rng(seed)
    swaps = generator.integers(0, 2, size=(resamples, len(first))).astype(np.float64)
    gain = swaps @ (second - first)  # (R, K): what run a wins by the swaps, and run b loses
    swapped = aggregate(first.sum(axis=0) + gain) - aggregate(second.sum(axis=0) - gain)
    # The small slack keeps sums that are equal but for rounding from counting as smaller.
    as_large = int(np.sum(np.abs(swapped) >= abs(difference) - 1e-12))
    return PairedTest(difference, interval, (as_large + 1) / (resamples + 1), n)


def mcnemar(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float] | None:
    """Return McNemar's exact test of two runs whose item scores are all 0 or 1; None for other scores.

    The test counts every item as independent. With several items per patient the randomization test of `paired_test` is the
    one to report.

    Args:
        first: {id: score} of run a.
        second: {id: score} of run b; only shared ids count.

    Returns:
        {"only_first", "only_second": items that only this run has right, "p_value": two-sided, exact binomial}.
    """
    shared = first.keys() & second.keys()
    if not shared or any(scores[key] not in (0.0, 1.0) for key in shared for scores in (first, second)):
        return None
    only_first = sum(first[key] > second[key] for key in shared)
    only_second = sum(first[key] < second[key] for key in shared)
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, count) for count in range(fewer + 1)) / 2**total
    return {"only_first": only_first, "only_second": only_second, "p_value": min(1.0, 2 * tail)}


def _resampled(sums: Floats, resamples: int, seed: int) -> Floats:
    """Draw `resamples` sets of G clusters with replacement and return their summed statistics (R, K)."""
    draw = _drawn_often if len(sums) <= _KEPT_GROUPS else _drawn
    return np.concatenate([counts @ sums for counts in draw(len(sums), resamples, seed)])


def _drawn(groups: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each cluster is drawn, (up to `_CHUNK`, G) at a time."""
    generator = np.random.default_rng(seed)
    share = np.full(groups, 1.0 / groups)
    for start in range(0, resamples, _CHUNK):
        counts = generator.multinomial(groups, share, size=min(_CHUNK, resamples - start))
        yield counts.astype(np.float64)


@lru_cache(maxsize=8)
def _drawn_often(groups: int, resamples: int, seed: int) -> tuple[Floats, ...]:
    """Return the draws of `_drawn`; all columns of a benchmark ask for the same ones."""
    return tuple(_drawn(groups, resamples, seed))


def _interval(values: Floats) -> tuple[float, float] | None:
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return None
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)
