"""Accuracy of option letters: strict reading, and the published substring rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_lowercase

from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.choice_letters import stated_letter
from medmvl.evaluation.metrics.metric import mean_metric

_OPTION_LINE = re.compile(r"(?:^|[\s,;?:.])[(\uff08]?\s?([a-z])\s?[).:\uff09]", re.IGNORECASE)
_FIRST_GROUP = re.compile(r"\(.*?\)")


def offered_letters(item: Item) -> frozenset[str] | None:
    """Return the option letters that the record's `options` or the question offers; None if they offer none.

    A question offers options if it lists at least "a" and "b", as "(a) ... (b) ...", "A. ... B. ..." or "A) ... B) ...".
    """
    options = item.record.get("options")
    if isinstance(options, Mapping) and options:
        letters = {str(key).strip("() .").lower() for key in options}
        return frozenset(letters) if all(len(letter) == 1 for letter in letters) else None
    if isinstance(options, list) and options:
        return frozenset(ascii_lowercase[: len(options)])
    found = {letter.lower() for letter in _OPTION_LINE.findall(item.question)}
    run = []
    for letter in ascii_lowercase:  # the longest run from "a": other single letters are not options
        if letter not in found:
            break
        run.append(letter)
    return frozenset(run) if len(run) > 1 else None


def reference_letter(item: Item) -> str | None:
    """Return the right option: the record's `answer_choice`, else the letter that the reference states."""
    choice = str(item.record.get("answer_choice") or "").strip("() .").lower()
    return choice if len(choice) == 1 and choice.isalpha() else stated_letter(item.reference, offered_letters(item))


def has_letter(item: Item) -> bool:
    """Whether the right answer is an option letter."""
    return reference_letter(item) is not None


def letter_correct(item: Item) -> float | None:
    """Return 1 if the prediction states the right option and no other; None if the reference states none."""
    reference = reference_letter(item)
    return None if reference is None else float(stated_letter(item.prediction, offered_letters(item)) == reference)


def letter_correct_published(item: Item) -> float | None:
    """Return MedM-VL's rule: the reference's first parenthesized group occurs anywhere in the prediction."""
    group = _FIRST_GROUP.search(item.reference)
    return None if group is None else float(group.group() in item.prediction)


def letter_correct_m3d(item: Item) -> float | None:
    """Return M3D's rule: the reference letter followed by a full stop occurs anywhere in the prediction."""
    letter = str(item.record.get("answer_choice") or reference_letter(item) or "").upper()
    return float(f"{letter}." in item.prediction) if letter else None


LETTER_ACCURACY = mean_metric(
    "letter-accuracy-strict",
    "Share of answers that commit to exactly one of the offered option letters, and the right one; references without a "
    "letter are left out and counted as dropped.",
    letter_correct,
    version="3",
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
