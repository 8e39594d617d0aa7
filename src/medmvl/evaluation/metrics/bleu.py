"""BLEU in the flavours that published medical VLM numbers mix: sentence means (NLTK, Hugging Face) and corpus (COCO).

The same answers score differently under each (metrics of "No pleural effusion." differ by 0.1), so each is a metric
with its own name, and none is called just BLEU. Formula: Papineni et al. 2002.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.base import Metric, Rows, cached, text_metric
from medmvl.evaluation.metrics.ptb import ptb_tokens
from medmvl.evaluation.statistics import Floats
from medmvl.evaluation.text import Tokenizer, normalized_tokens, tokens_13a, whitespace_tokens

MAX_ORDER = 4
# pycocoevalcap adds these inside the precisions, so a COCO BLEU is never exactly 0.
_COCO_TINY, _COCO_SMALL = 1e-15, 1e-9


def ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """Count the n-grams of one order."""
    return Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))


def clipped_matches(candidate: Sequence[str], reference: Sequence[str], order: int) -> int:
    """Count n-grams of the candidate, each at most as often as the reference has it."""
    return (ngrams(candidate, order) & ngrams(reference, order)).total()


def brevity_penalty(candidate_length: int, reference_length: int) -> float:
    """Return exp(1 - r/c) for a candidate shorter than its reference, else 1; 0 for an empty candidate."""
    if candidate_length >= reference_length:
        return 1.0 if candidate_length else 0.0
    return math.exp(1 - reference_length / candidate_length) if candidate_length else 0.0


def sentence_bleu1(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """Return unigram precision times brevity penalty, unsmoothed; 0 for an empty candidate.

    NLTK's `sentence_bleu` with weights (1,) and Hugging Face `evaluate`'s BLEU with `max_order=1` agree on it for one
    reference: only their tokens differ.
    """
    if not candidate:
        return 0.0
    precision = clipped_matches(candidate, reference, 1) / len(candidate)
    return precision * brevity_penalty(len(candidate), len(reference))


def _sentence_metric(name: str, definition: str, tokenize: Tokenizer) -> Metric:
    return text_metric(
        name, definition, lambda answer, reference: sentence_bleu1(tokenize(answer), tokenize(reference))
    )


def coco_statistics(candidate: Sequence[str], reference: Sequence[str]) -> list[float]:
    """Return the 2 + 2·4 corpus statistics of one pair: lengths, then matches and totals for n = 1..4."""
    orders = range(1, MAX_ORDER + 1)
    matches = [float(clipped_matches(candidate, reference, order)) for order in orders]
    totals = [float(max(0, len(candidate) - order + 1)) for order in orders]
    return [float(len(candidate)), float(len(reference)), *matches, *totals]


def coco_corpus_bleu(sums: Floats, order: int) -> Floats:
    """Return corpus BLEU-`order` from the summed statistics (..., 10), as pycocoevalcap's `Bleu(4)` computes it."""
    candidate, reference = sums[..., 0], sums[..., 1]
    precisions = (sums[..., 2 : 2 + order] + _COCO_TINY) / (sums[..., 6 : 6 + order] + _COCO_SMALL)
    geometric = np.prod(precisions, axis=-1) ** (1 / order)
    relative = (candidate + _COCO_TINY) / (reference + _COCO_SMALL)
    penalty = np.where(relative < 1, np.exp(1 - 1 / np.maximum(relative, _COCO_TINY)), 1.0)
    return geometric * penalty


def _coco_metric(order: int, tokenizer_name: str, tokenize: Tokenizer, *, drop_empty: bool) -> Metric:
    @cached
    def row(answer: str, target: str) -> list[float] | None:
        candidate, reference = tokenize(answer), tokenize(target)
        return None if drop_empty and not (candidate and reference) else coco_statistics(candidate, reference)

    def rows(items: Sequence[Item]) -> Rows:
        return [row(item.hypothesis, item.target) for item in items]

    dropped = "items with an empty side are dropped, as published" if drop_empty else "empty answers count"
    return Metric(
        name=f"bleu{order}-coco-corpus-{tokenizer_name}",
        definition=f"Corpus BLEU-{order} of pycocoevalcap (closest length, brevity penalty over the corpus) on "
        f"{tokenizer_name} tokens; {dropped}.",
        rows=rows,
        aggregate=lambda sums: coco_corpus_bleu(sums, order),
    )


BLEU1_NLTK_MEAN = _sentence_metric(
    "bleu1-nltk-mean",
    "Mean over items of NLTK sentence BLEU-1 (unsmoothed, brevity penalty) on normalize_word tokens: the Uni-Med "
    "scorer's VQA number.",
    normalized_tokens,
)
BLEU1_HF_MEAN = _sentence_metric(
    "bleu1-hf-mean-13a",
    "Mean over items of Hugging Face evaluate's BLEU (max_order=1) on 13a tokens, case kept, empty answer 0: the "
    "MedM-VL and M3D scorers.",
    tokens_13a,
)
BLEU1_COCO_PTB = _coco_metric(1, "ptb", ptb_tokens, drop_empty=True)
BLEU4_COCO_PTB = _coco_metric(4, "ptb", ptb_tokens, drop_empty=True)
BLEU1_COCO_WHITESPACE = _coco_metric(1, "whitespace", whitespace_tokens, drop_empty=False)
BLEU4_COCO_WHITESPACE = _coco_metric(4, "whitespace", whitespace_tokens, drop_empty=False)
