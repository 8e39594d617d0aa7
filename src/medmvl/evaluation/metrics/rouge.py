"""ROUGE-L twice: the `rouge-score` package's F, and COCO's recall-weighted F. Lin 2004.

`rouge-score` reads English words only, so Chinese items are given to it cut by character.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from medmvl.errors import require
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.base import mean_metric
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


def _rouge_f(item: Item, kind: str) -> float:
    return float(_scorer(chinese=item.chinese).score(item.target, item.hypothesis)[kind].fmeasure)


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


def _coco_item(tokenize: Tokenizer, item: Item) -> float:
    return coco_rouge_l(tokenize(item.hypothesis), tokenize(item.target))


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
ROUGE_L_COCO_WHITESPACE = mean_metric(
    "rouge-l-coco-whitespace",
    "Mean over items of pycocoevalcap's ROUGE-L (LCS F, beta 1.2) on white-space tokens: CT-CHAT's scorer.",
    lambda item: _coco_item(whitespace_tokens, item),
)
ROUGE_L_COCO_PTB = mean_metric(
    "rouge-l-coco-ptb",
    "Mean over items of pycocoevalcap's ROUGE-L (LCS F, beta 1.2) on PTB tokens.",
    lambda item: _coco_item(ptb_tokens, item),
)
