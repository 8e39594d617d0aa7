"""Multiple-choice questions as records: options in the question, and the right one as "(b) text"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from medmvl.data.converters.converter import Job, Record, qa_record

_OWN_LETTER = re.compile(r"^\s*\(?([A-Z])\)?\s*[:.)]\s*(?=\S)")


def option_text(letter: str, text: Any) -> str:
    """Return the text of an option without the letter that some sources write before it.

    >>> option_text("B", " B:Focal uptake pattern ")
    'Focal uptake pattern'
    """
    plain = " ".join(str("" if text is None else text).split())
    own = _OWN_LETTER.match(plain)
    return plain[own.end() :] if own and own.group(1) == letter.upper() else plain


def choice_letter(answer: Any, options: Mapping[str, str]) -> str | None:
    """Return the letter of the right option, given as a letter ("B", "(b)", "B. text") or as the text of one option.

    None means that the answer is none of the options, or that two options have its text.
    """
    text = " ".join(str("" if answer is None else answer).split())
    same = [letter for letter, option in options.items() if option.casefold() == text.casefold()]
    if same:
        return same[0] if len(same) == 1 else None
    bare = text.strip("().: ").upper()
    if bare in options:
        return bare
    own = _OWN_LETTER.match(text)
    if own and own.group(1) in options and options[own.group(1)].casefold() == text[own.end() :].casefold():
        return own.group(1)
    return None


def choice_record(
    job: Job, identifier: str, question: str, options: Mapping[str, str], answer: Any, **extra: Any
) -> Record | None:
    """Return the record of a multiple-choice question, or None after accounting for one that cannot be asked.

    The record also has `options` (letter -> text), `answer_choice` (the letter) and `answer_type` CLOSED.

    Args:
        job: the running conversion.
        identifier: id of the record.
        question: text without the options.
        options: letter ("A", "B", ...) -> text; options without a text are left out.
        answer: the letter or the text of the right option.
        extra: further arguments of `qa_record` (image, volume, evaluation) and keys of the record.
    """
    present = {letter: option_text(letter, text) for letter, text in options.items()}
    present = {letter: text for letter, text in present.items() if text}
    asked = " ".join(question.split())
    if not asked or len(present) < 2:
        job.report.fault("question without a text or without two options", identifier)
        return None
    letter = choice_letter(answer, present)
    if letter is None:
        job.report.fault("answer is none of the options, or more than one", identifier)
        return None
    listed = " ".join(f"({key.lower()}) {text}" for key, text in present.items())
    facts = {"task": "choice", "answer_type": "CLOSED", "options": present, "answer_choice": letter} | extra
    return qa_record(identifier, f"{asked} {listed}", f"({letter.lower()}) {present[letter]}", **facts)
