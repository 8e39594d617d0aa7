"""ROUGE-L twice: the `rouge-score` package's F, and COCO's recall-weighted F. Lin 2004.

`rouge-score` reads English words only, so Chinese items are given to it cut by character.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from medmvl.errors import require
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.base import Metric, cached, mean_metric, text_metric
from medmvl.evaluation.metrics.ptb import ptb_tokens
from medmvl.evaluation.text import Tokenizer, whitespace_tokens

COCO_BETA = 1.2  # pycocoevalcap's rouge.py: recall counts 1.44 times as much as precision


class _SplitTokenizer:
    """The rouge-score package's tokeniser interface over plain white space."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


@cache
def _scorer(*, chinese: bool) -> Any:
    module = require("rouge_score.rouge_scorer", "eval")
    # None selects the package's own tokeniser: lower case, everything but a-z and 0-9 is a gap.
    return module.RougeScorer(["rouge1", "rougeL"], use_stemmer=False, tokenizer=_SplitTokenizer() if chinese else None)


@cached
def _rouge(answer: str, reference: str, chinese: bool) -> dict[str, float]:
    return {kind: float(score.fmeasure) for kind, score in _scorer(chinese=chinese).score(reference, answer).items()}


def _rouge_f(item: Item, kind: str) -> float:
    return _rouge(item.hypothesis, item.target, item.chinese)[kind]


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence in O(len·len) time and O(len) memory."""
    row = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            diagonal, row[place] = row[place], diagonal + 1 if token == other else max(row[place], row[place - 1])
    return row[-1]


def coco_rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """Return the LCS F-measure with beta = 1.2; 0 when nothing is shared."""
    common = longest_common_subsequence(candidate, reference)
    if not common:
        return 0.0
    precision, recall = common / len(candidate), common / len(reference)
    weight = COCO_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def _coco(name: str, definition: str, tokenize: Tokenizer) -> Metric:
    return text_metric(name, definition, lambda answer, reference: coco_rouge_l(tokenize(answer), tokenize(reference)))


ROUGE_L = mean_metric(
    "rouge-l",
    "Mean over items of ROUGE-L F1 from the package rouge-score (no stemmer; Chinese by character); empty answer 0.",
    lambda item: _rouge_f(item, "rougeL"),
)
ROUGE_1 = mean_metric(
    "rouge-1",
    "Mean over items of ROUGE-1 F1 from the package rouge-score (no stemmer; Chinese by character); empty answer 0.",
    lambda item: _rouge_f(item, "rouge1"),
)
ROUGE_L_COCO_WHITESPACE = _coco(
    "rouge-l-coco-whitespace",
    "Mean over items of pycocoevalcap's ROUGE-L (LCS F, beta 1.2) on white-space tokens: CT-CHAT's scorer.",
    whitespace_tokens,
)
ROUGE_L_COCO_PTB = _coco(
    "rouge-l-coco-ptb",
    "Mean over items of pycocoevalcap's ROUGE-L (LCS F, beta 1.2) on PTB tokens.",
    ptb_tokens,
)
