"""CIDEr-D over a corpus (Vedantam et al. 2015), as pycocoevalcap computes it under the name "Cider".

Document frequencies come from the references of the items scored together, so a single item scores 0 and a mean of
scores that were each computed alone has no meaning. Therefore CIDEr is not available per item here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.bleu import CT_CHAT_COCO, UNIMED_COCO, CocoScorer
from medmvl.evaluation.metrics.metric import Metric, Rows, mean_of_sums

Gram = tuple[str, ...]
ORDERS = 4
SIGMA = 6.0  # width of the length penalty, in bigrams (CIDEr-D)
SCALE = 10.0  # pycocoevalcap multiplies by it; published values contain it


@dataclass(frozen=True, slots=True)
class _Vector:
    """tf-idf weights per order, their Euclidean norms, and the length that the penalty compares (in bigrams)."""

    weights: list[dict[Gram, float]]
    norms: list[float]
    length: int


def _grams(tokens: Sequence[str]) -> Counter[Gram]:
    """Count the n-grams of orders 1 to 4 together."""
    return Counter(
        tuple(tokens[start : start + order])
        for order in range(1, ORDERS + 1)
        for start in range(len(tokens) - order + 1)
    )


def _vector(grams: Counter[Gram], documents: Counter[Gram], log_total: float) -> _Vector:
    weights: list[dict[Gram, float]] = [{} for _ in range(ORDERS)]
    for gram, count in grams.items():
        weights[len(gram) - 1][gram] = count * (log_total - math.log(max(1, documents[gram])))
    norms = [math.sqrt(math.fsum(weight * weight for weight in order.values())) for order in weights]
    return _Vector(weights, norms, sum(count for gram, count in grams.items() if len(gram) == 2))


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Return the mean over orders of the clipped cosine, times the length penalty."""
    total = 0.0
    for mine, theirs, my_norm, their_norm in zip(
        candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
    ):
        dot = math.fsum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
        if my_norm and their_norm:
            total += dot / (my_norm * their_norm)
    penalty = math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))
    return total / ORDERS * penalty


def cider_d(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[float]:
    """Return CIDEr-D of every (candidate, reference) pair, with document frequencies over all the references."""
    keys = [(tuple(candidate), tuple(reference)) for candidate, reference in pairs]
    grams = {tokens: _grams(tokens) for pair in keys for tokens in pair}  # equal answers are counted once
    documents: Counter[Gram] = Counter()
    for reference, times in Counter(reference for _, reference in keys).items():
        for gram in grams[reference]:
            documents[gram] += times
    log_total = math.log(len(pairs)) if pairs else 0.0
    vectors = {tokens: _vector(counted, documents, log_total) for tokens, counted in grams.items()}
    return [SCALE * _similarity(vectors[candidate], vectors[reference]) for candidate, reference in keys]


def _cider_metric(scorer: CocoScorer) -> Metric:
    def rows(items: Sequence[Item]) -> Rows:
        texts = [scorer.texts(item) for item in items]
        kept = [pair for pair in texts if pair is not None]
        scores = iter(cider_d([(scorer.tokenize(answer), scorer.tokenize(target)) for answer, target in kept]))
        return [None if pair is None else (next(scores), 1.0) for pair in texts]

    return Metric(
        name=f"cider-d-corpus-{scorer.name}",
        definition=f"CIDEr-D of pycocoevalcap (scale 0 to 10) on {scorer.name} tokens, document frequencies over all "
        f"references of the benchmark; {scorer.note}.",
        rows=rows,
        aggregate=mean_of_sums,
        version="2",
        item_means=False,
    )


CIDER_PTB = _cider_metric(UNIMED_COCO)
CIDER_WHITESPACE = _cider_metric(CT_CHAT_COCO)
