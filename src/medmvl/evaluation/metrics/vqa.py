"""Scores of short answers: token F1 and recall, equality, and strict reading of closed answers.

The published closed accuracy counts every answer that contains the reference, so "not sure" scores as "no". Both numbers are
here, under different names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from medmvl.evaluation.answer_types import CLOSED_TYPES, answer_type
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.choice import offered_letters
from medmvl.evaluation.metrics.choice_letters import stated_letter
from medmvl.evaluation.metrics.metric import mean_metric
from medmvl.evaluation.scripts import spaced_words
from medmvl.evaluation.text import normalize_word, normalized_tokens, strip_markup

YES_NO = ("yes", "no")
_LONGEST_CHOICE = 500  # characters at the end of a question that are searched for "A or B?"
_CHINESE_YES = frozenset({"是", "是的", "有", "存在", "对", "包含", "可以", "能"})
_CHINESE_NO = frozenset({"否", "不", "不是", "没有", "无", "不存在", "不对", "不包含", "不可以", "不能"})
# "Is it on the left or the right?" -> left, right: the last "A or B" before the question mark.
_TWO_WAY = re.compile(r"([^,.?:;]{1,200}?)(?:, ?| )or ([^,.?:;]{1,200}?) ?\? ?$", re.IGNORECASE)
# A dash directly before a letter is part of a word ("no-contrast").
_LEADING_VERDICT = re.compile(
    r"^[\W_]*(?:(?:the )?(?:final )?answer(?: is)?[\W_]+)?(yes|no)\s*(?:[.,;:!?\n\u2013\u2014()\]]|-(?!\w)|$)",
    re.IGNORECASE,
)


def token_overlap(candidate: Sequence[str], reference: Sequence[str]) -> tuple[int, int, int]:
    """Return (matched, only in the candidate, missed) as Uni-Med and LLaVA-Med count them.

    A word type on both sides adds the *candidate's* count to the matches; a type only there adds its count to the
    surplus; a type only in the reference adds the reference's count to the missed.
    """
    ours, theirs = Counter(candidate), Counter(reference)
    matched = sum(count for word, count in ours.items() if word in theirs)
    missed = sum(count for word, count in theirs.items() if word not in ours)
    return matched, ours.total() - matched, missed


def token_f1(item: Item) -> float:
    """Return Uni-Med's token F1 of one item (0 when nothing is shared)."""
    matched, surplus, missed = token_overlap(normalized_tokens(item.hypothesis), normalized_tokens(item.target))
    # F1 of P = m/(m+s) and R = m/(m+d) is 2m/(2m+s+d).
    return 2 * matched / (2 * matched + surplus + missed) if matched else 0.0


def token_recall(item: Item) -> float:
    """Return LLaVA-Med's token recall of one item: matched / (matched + missed)."""
    matched, _, missed = token_overlap(normalized_tokens(item.hypothesis), normalized_tokens(item.target))
    return matched / (matched + missed) if matched else 0.0


def token_precision(item: Item) -> float:
    """Return LLaVA-Med's token precision of one item: matched / (matched + surplus)."""
    matched, surplus, _ = token_overlap(normalized_tokens(item.hypothesis), normalized_tokens(item.target))
    return matched / (matched + surplus) if matched else 0.0


def equal_normalized(item: Item) -> float:
    """Return 1 if both sides are equal after `normalize_word`; an empty answer is never right.

    A reference that the normalization empties (the option "A" is an article) is compared as written, without case.
    """
    prediction, reference = normalize_word(item.hypothesis), normalize_word(item.target)
    if not reference:
        prediction, reference = item.hypothesis.strip().lower(), item.target.strip().lower()
    return float(bool(prediction) and prediction == reference)


def contains_reference(item: Item) -> float:
    """Return 1 if the normalized reference is a substring of the normalized prediction (the published rule)."""
    reference = normalize_word(item.target)
    return float(bool(reference) and reference in normalize_word(item.hypothesis))


def closed_correct_llava_med(item: Item) -> float:
    """Return LLaVA-Med's verdict: 0 if neither "yes" nor "no" occurs, else whether the reference is a substring."""
    prediction = normalize_word(item.hypothesis.lower())
    named = any(word in prediction for word in YES_NO)
    return float(named and normalize_word(item.target.lower()) in prediction)


def is_closed(item: Item) -> bool:
    """Whether the item is a closed question: by its `answer_type`, and without one by a yes/no reference."""
    kind = answer_type(item.record)
    return kind in CLOSED_TYPES if kind else normalize_word(item.reference) in YES_NO


def is_open(item: Item) -> bool:
    """Whether the item is an open question."""
    return not is_closed(item)


def options_of(item: Item) -> list[str]:
    """Return the answers a closed question allows, normalized: record `options`, yes/no, or "A or B" in the question.

    An empty list means that they are not stated.
    """
    stated = item.record.get("options")
    if isinstance(stated, dict):
        stated = list(stated.values())
    if isinstance(stated, list) and stated:
        return [normalize_word(str(option)) for option in stated]
    reference = normalize_word(item.target)
    if reference in YES_NO:
        return list(YES_NO)
    pair = _TWO_WAY.search(" ".join(item.question.split())[-_LONGEST_CHOICE:])
    if pair is None:
        return []
    # The sides carry more than the options ("is it on left" | "right side"): the reference tells how long an option is.
    first, second = normalize_word(pair.group(1)).split(), normalize_word(pair.group(2)).split()
    words = reference.split()
    if second[: len(words)] == words:
        others = [first[-len(words) :], first[-1:]]
    elif first[-len(words) :] == words:
        others = [second[: len(words)], second[:1]]
    else:
        return []
    return [reference, *({" ".join(other) for other in others if other} - {reference})]


def _occurs(words: str, text: str) -> bool:
    return f" {words} " in f" {text} "


def chosen_option(prediction: str, options: Sequence[str]) -> str | None:
    """Return the one option that a prediction commits to, or None if it names none or several.

    Markdown, tags and quotes are removed first. A leading "yes" or "no" followed by punctuation or the end decides a yes/no
    question ("Yes, there is no ..." is yes). Otherwise exactly one of the options must occur as whole words; an option
    inside a longer one that also occurs ("left" in "left lung") does not count.
    """
    said = strip_markup(prediction)
    leading = _LEADING_VERDICT.match(said)
    if leading and set(options) == set(YES_NO):
        return leading.group(1).lower()
    text = normalize_word(said)
    named = {option for option in options if _occurs(option, text)}
    longest = {option for option in named if not any(option != other and _occurs(option, other) for other in named)}
    return longest.pop() if len(longest) == 1 else None


def closed_correct(item: Item) -> float:
    """Return 1 if the answer to a closed question is right under strict reading."""
    if item.chinese:
        return _chinese_closed(item)
    reference = normalize_word(item.target)
    options = options_of(item)
    chosen = _right_option(item)
    if chosen is not None:
        letter = stated_letter(item.prediction, offered_letters(item))
        if letter is not None:
            return float(letter == chosen[0].lower())
        reference = normalize_word(chosen[1])
    if reference not in options:
        return equal_normalized(replace(item, prediction=strip_markup(item.prediction)))
    return float(chosen_option(item.hypothesis, options) == reference)


def _right_option(item: Item) -> tuple[str, str] | None:
    """Return the letter and the text of the right option of a multiple-choice question, or None if the record has none."""
    options, letter = item.record.get("options"), str(item.record.get("answer_choice") or "")
    return (letter, str(options[letter])) if isinstance(options, dict) and letter in options else None


def _chinese_closed(item: Item) -> float:
    prediction, reference = (
        re.sub(r"[^\w]", "", spaced_words(text)).lower() for text in (item.prediction, item.reference)
    )
    for family in (_CHINESE_YES, _CHINESE_NO):
        if reference in family:
            return float(prediction in family)
    return float(bool(prediction) and prediction == reference)


TOKEN_F1 = mean_metric(
    "token-f1-unimed",
    "Mean over items of the Uni-Med token F1: normalize_word tokens, shared word types add the answer's count.",
    token_f1,
)
OPEN_RECALL = mean_metric(
    "open-recall",
    "Mean over OPEN questions of LLaVA-Med's token recall (normalize_word tokens, shared types add the answer's "
    "count).",
    lambda item: token_recall(item) if is_open(item) else None,
)
OPEN_F1 = mean_metric(
    "open-f1",
    "Mean over OPEN questions of the Uni-Med token F1.",
    lambda item: token_f1(item) if is_open(item) else None,
)
OPEN_PRECISION = mean_metric(
    "open-precision",
    "Mean over OPEN questions of LLaVA-Med's token precision.",
    lambda item: token_precision(item) if is_open(item) else None,
)
ACCURACY = mean_metric("accuracy", "Share of answers equal to the reference after normalize_word.", equal_normalized)
CLOSED_ACCURACY = mean_metric(
    "closed-accuracy-strict",
    "Share of CLOSED questions answered right under strict parsing: yes/no by a leading verdict or exactly one of the "
    "two words; two-way choices by exactly one option named; otherwise equality after normalize_word.",
    lambda item: closed_correct(item) if is_closed(item) else None,
    version="2",
)
CLOSED_ACCURACY_PUBLISHED = mean_metric(
    "closed-accuracy-contains",
    'Share of CLOSED questions whose normalized reference is a substring of the normalized answer ("no" in "not '
    'sure" counts): the Uni-Med rule, kept for comparison only.',
    lambda item: contains_reference(item) if is_closed(item) else None,
)
CLOSED_ACCURACY_LLAVA_MED = mean_metric(
    "closed-accuracy-llava-med",
    'LLaVA-Med\'s share of right CLOSED answers: wrong without a "yes" or "no" anywhere, else right if the normalized '
    "reference is a substring of the answer.",
    lambda item: closed_correct_llava_med(item) if is_closed(item) else None,
)
