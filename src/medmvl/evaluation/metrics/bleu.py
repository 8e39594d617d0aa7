"""BLEU in the variants of published medical VLM numbers: sentence means (NLTK, Hugging Face) and corpus BLEU (COCO).

The same answers score differently under each (for "No pleural effusion." by 0.1), so each variant is a metric with its own
name. Formula: Papineni et al. 2002.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.metric import Metric, Rows, cached, text_metric
from medmvl.evaluation.metrics.ptb import ptb_tokens
from medmvl.evaluation.statistics import Floats
from medmvl.evaluation.text import Tokenizer, ct_chat_answer, normalized_tokens, tokens_13a

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


@dataclass(frozen=True, slots=True)
class CocoScorer:
    """A published use of pycocoevalcap's corpus scorers.

    Attributes:
        name: part of the metric names.
        texts: item -> (answer, reference) as it is tokenized, None for an item that the scorer leaves out.
        prepare: text -> text whose white space separates the tokens.
        note: the items it leaves out, for the definition.
    """

    name: str
    texts: Callable[[Item], tuple[str, str] | None]
    prepare: Callable[[str], str]
    note: str

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        return self.prepare(text).split()


def ptb_text(text: str) -> str:
    """Return the PTB tokens of a text, joined by spaces."""
    return " ".join(ptb_tokens(text))


def _unimed_texts(item: Item) -> tuple[str, str] | None:
    """Return the texts, or None if a side is empty. A side with punctuation only is not empty, though it has no tokens."""
    return (item.hypothesis, item.target) if item.prediction.strip() and item.reference.strip() else None


def _ct_chat_texts(item: Item) -> tuple[str, str] | None:
    """Return the texts with the answer cleaned, or None if the reference has a line break."""
    if "\n" in item.reference:
        return None
    return (item.hypothesis if item.other_script else ct_chat_answer(item.prediction)), item.target


UNIMED_COCO = CocoScorer("ptb", _unimed_texts, ptb_text, "items with an empty side are dropped, as published")
CT_CHAT_COCO = CocoScorer(
    "whitespace",
    _ct_chat_texts,
    str,
    "as CT-CHAT's scorer: special tokens and line breaks are deleted from answers, references with a line break are dropped",
)


def coco_bleu(order: int, scorer: CocoScorer) -> Metric:
    """Make corpus BLEU of an order from 1 to 4."""

    @cached
    def row(answer: str, target: str) -> list[float]:
        return coco_statistics(scorer.tokenize(answer), scorer.tokenize(target))

    def rows(items: Sequence[Item]) -> Rows:
        pairs = map(scorer.texts, items)
        return [None if pair is None else row(*pair) for pair in pairs]

    return Metric(
        name=f"bleu{order}-coco-corpus-{scorer.name}",
        definition=f"Corpus BLEU-{order} of pycocoevalcap (closest length, brevity penalty over the corpus) on "
        f"{scorer.name} tokens; {scorer.note}.",
        rows=rows,
        aggregate=lambda sums: coco_corpus_bleu(sums, order),
        version="2",
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
COCO_BLEU = [coco_bleu(order, scorer) for scorer in (UNIMED_COCO, CT_CHAT_COCO) for order in range(1, MAX_ORDER + 1)]
