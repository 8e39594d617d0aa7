"""Accuracy and word F1 of generated answers during training; results to publish come from `medmvl evaluate`."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any


def score_answers(answers: list[dict[str, Any]]) -> dict[str, float]:
    """Return `accuracy` (share of predictions that equal their answer) and `f1` (mean F1 of their words, with repetitions).

    Case and punctuation are ignored. Records without an answer are skipped; if none is left, the result is empty.

    Args:
        answers: each with `answer` (a text or None) and `prediction`.
    """
    pairs = [(_words(row["answer"]), _words(row["prediction"])) for row in answers if row["answer"] is not None]
    if not pairs:
        return {}
    equal = [answer == prediction for answer, prediction in pairs]
    return {"accuracy": sum(equal) / len(pairs), "f1": sum(_f1(*pair) for pair in pairs) / len(pairs)}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _f1(answer: list[str], prediction: list[str]) -> float:
    """Harmonic mean of precision and recall of the words: 2 common / (all of both)."""
    if not answer and not prediction:
        return 1.0
    common = (Counter(answer) & Counter(prediction)).total()
    return 2 * common / (len(answer) + len(prediction))
