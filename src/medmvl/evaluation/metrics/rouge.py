"""ROUGE-1, ROUGE-2 and ROUGE-L as the package rouge-score defines them, and COCO's recall-weighted ROUGE-L. Lin 2004.

Words are lower-cased runs of letters, marks and digits of any script (`letter_words`), which for ASCII text are the package's
tokens. The longest common subsequence is found with bit vectors (Hyyrö 2004), so that texts of 100 000 characters take
seconds instead of hours.
"""

from __future__ import annotations

from collections.abc import Sequence

from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.bleu import CT_CHAT_COCO, UNIMED_COCO, CocoScorer, clipped_matches
from medmvl.evaluation.metrics.metric import Metric, cached, mean_metric
from medmvl.evaluation.scripts import letter_words
from medmvl.evaluation.text import space_tokens

COCO_BETA = 1.2  # pycocoevalcap's rouge.py: recall counts 1.44 times as much as precision


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two token lists.

    The usual dynamic-programming table is not stored. One integer encodes its current row: bit j is 0 if the value
    grows at column j. Each token of `first` updates this integer with four operations on len(second) bits (Hyyrö 2004).
    """
    positions: dict[str, int] = {}
    for column, token in enumerate(second):
        positions[token] = positions.get(token, 0) | 1 << column
    full = (1 << len(second)) - 1
    row = full
    for token in first:
        matches = row & positions.get(token, 0)
        if matches:
            row = ((row + matches) | (row - matches)) & full
    return len(second) - row.bit_count()


def _f_measure(common: int, candidate: int, reference: int) -> float:
    """Return F1 of `common` out of two counts; 0 if nothing is shared."""
    return 2 * common / (candidate + reference) if common else 0.0


def rouge_n(candidate: Sequence[str], reference: Sequence[str], order: int) -> float:
    """Return F1 of the clipped n-gram matches; 0 for texts shorter than n tokens."""
    sizes = [max(0, len(tokens) - order + 1) for tokens in (candidate, reference)]
    return _f_measure(clipped_matches(candidate, reference, order), *sizes)


def rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """Return F1 of the longest common subsequence."""
    return _f_measure(longest_common_subsequence(candidate, reference), len(candidate), len(reference))


def coco_rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """Return the LCS F-measure with beta = 1.2; 0 if nothing is shared."""
    common = longest_common_subsequence(candidate, reference)
    if not common:
        return 0.0
    precision, recall = common / len(candidate), common / len(reference)
    weight = COCO_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


@cached
def _scores(answer: str, reference: str) -> dict[str, float]:
    """Return rouge-1, rouge-2 and rouge-l of a pair of texts."""
    candidate, target = letter_words(answer), letter_words(reference)
    orders = {f"rouge-{order}": rouge_n(candidate, target, order) for order in (1, 2)}
    return {**orders, "rouge-l": rouge_l(candidate, target)}


def _rouge(name: str) -> Metric:
    def score(item: Item) -> float:
        return _scores(item.hypothesis, item.target)[name]

    definition = (
        f"Mean over items of {name.upper()} F1 as the package rouge-score computes it without stemmer; words are runs of "
        "letters, marks and digits, in scripts without spaces single characters; empty answer 0."
    )
    return mean_metric(name, definition, score, version="2")


def _coco(scorer: CocoScorer) -> Metric:
    @cached
    def score(answer: str, target: str) -> float:
        # The original splits at every single space, so two spaces, or a text without words, give an empty token.
        candidate, reference = (space_tokens(scorer.prepare(text)) for text in (answer, target))
        return coco_rouge_l(candidate, reference)

    def item_score(item: Item) -> float | None:
        pair = scorer.texts(item)
        return None if pair is None else score(*pair)

    definition = f"Mean over items of pycocoevalcap's ROUGE-L (LCS F, beta 1.2) on {scorer.name} tokens; {scorer.note}."
    return mean_metric(f"rouge-l-coco-{scorer.name}", definition, item_score, version="2")


ROUGE_1, ROUGE_2, ROUGE_L = _rouge("rouge-1"), _rouge("rouge-2"), _rouge("rouge-l")
ROUGE_L_COCO_PTB, ROUGE_L_COCO_WHITESPACE = _coco(UNIMED_COCO), _coco(CT_CHAT_COCO)
