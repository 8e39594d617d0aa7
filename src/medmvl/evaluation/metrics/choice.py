"""Multiple choice: which letter did the answer commit to?"""

from __future__ import annotations

import re

from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.base import mean_metric

_IN_PARENTHESES = re.compile(r"\(([a-z])\)", re.IGNORECASE)
_LEADING = re.compile(r"^\W*(?:option|answer(?:\s+is)?|answer\s*:)?\s*([a-z])\s*(?:[).:,]|$)", re.IGNORECASE)
_FIRST_GROUP = re.compile(r"\(.*?\)")


def stated_letter(text: str) -> str | None:
    """Return the one option letter of an answer in lower case, or None.

    Letters in parentheses decide; if there are none, a letter at the very start followed by ")", ".", ":", "," or the
    end ("B", "b) mild", "Answer: C."). An answer that names two different letters commits to none.
    """
    letters = {letter.lower() for letter in _IN_PARENTHESES.findall(text)}
    if letters:
        return letters.pop() if len(letters) == 1 else None
    leading = _LEADING.match(text.strip())
    return leading.group(1).lower() if leading else None


def letter_correct(item: Item) -> float | None:
    """Return 1 if prediction and reference state the same letter; None if the reference states none."""
    reference = stated_letter(item.reference)
    return None if reference is None else float(stated_letter(item.prediction) == reference)


def letter_correct_published(item: Item) -> float | None:
    """Return MedM-VL's rule: the reference's first parenthesised group occurs anywhere in the prediction."""
    group = _FIRST_GROUP.search(item.reference)
    return None if group is None else float(group.group() in item.prediction)


def letter_correct_m3d(item: Item) -> float | None:
    """Return M3D's rule: the reference letter followed by a full stop occurs anywhere in the prediction."""
    letter = str(item.record.get("answer_choice") or stated_letter(item.reference) or "").upper()
    return float(f"{letter}." in item.prediction) if letter else None


LETTER_ACCURACY = mean_metric(
    "letter-accuracy-strict",
    "Share of answers that commit to exactly one option letter, and the right one; references without a letter are "
    "left out and counted as dropped.",
    letter_correct,
)
LETTER_ACCURACY_PUBLISHED = mean_metric(
    "letter-accuracy-medm-vl",
    "MedM-VL's rule: the reference's \"(x)\" occurs anywhere in the answer (an answer listing all options scores 1).",
    letter_correct_published,
)
LETTER_ACCURACY_M3D = mean_metric(
    "letter-accuracy-m3d",
    'M3D\'s rule: "X." occurs anywhere in the answer (also inside a word).',
    letter_correct_m3d,
)
