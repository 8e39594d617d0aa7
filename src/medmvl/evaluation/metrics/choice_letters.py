"""The option letter that an answer in free text commits to."""

from __future__ import annotations

import re
from collections.abc import Collection

from medmvl.evaluation.text import strip_markup

#: Letters that can be options where the question states none.
USUAL_LETTERS = frozenset("abcdefghij")

_FLAGS = re.IGNORECASE | re.VERBOSE
# After a bare letter: punctuation, a dash, a reason, or the end of the line.
_AFTER = r"(?: \s*[).:,;!?\]}] | \s+[-\u2013\u2014]\s | \s+(?:because|since)\b | \s*$ | \s*\n )"
_BRACKETED = re.compile(r"[({\[]\s*([a-z])\s*[)}\]]", _FLAGS)
_LETTER = rf"(?: [({{\[]\s*([a-z])\s*[)}}\]] | ([a-z])(?={_AFTER}) )"
_LINK = r"(?: \s*(?: 's | is | was | are | (?:w|c|sh)ould\s+be | must\s+be | will\s+be | seems\s+to\s+be ) )"
_NOUN = r"(?: answer | option | choice | letter )"
# "The correct answer is C.", "Answer: (b)", "Ans. c", "Correct: B", "the choice would be B", "I would go with C", and in Chinese.
_CUE = rf"""(?:
    \b(?: answer | ans\b\.? | response | letter ) (?:\s+{_NOUN})? {_LINK}? (?:\s+but)? \s*[:=-]?
    | \bcorrect\s*[:=]
    | \b(?: option | choice | selection ) (?: {_LINK} \s*:? | \s*[:=] )
    | \b(?: choose | chose | select(?:ed|ion)? | pick(?:ed)? | go(?:ing)?\s+with | opt\s+for | settle\s+on ) \s*[:=]?
    | \bit {_LINK}\s
    | \u7b54\u6848\s*[\u662f\u4e3a\u9009]? \s*:? | \u9009(?:\u62e9|\u9879)? \s*:?
)"""
# An enumeration ("A or B") commits to none.
_ALONE_IN_LIST = r"(?! \s*(?: , | or | and | & | / )\s* [(\[]?[a-z][)\]]?(?!\w) )"
_STATED = re.compile(rf"{_CUE} \s* (?:{_NOUN}\s*)? {_LETTER} {_ALONE_IN_LIST}", _FLAGS | re.MULTILINE)
# Upper-case letters only, since "a" is an article: "Answer: B mild"; "so B."; "but A."
_STATED_UPPER = re.compile(r"(?i:\banswer(?:\s+is)?\s*[:=]?)\s*([B-HJ-Z])(?=\s)")
_CONCLUDED = re.compile(r"\b(?i:so|thus|hence|therefore|but)\b\s*,?\s*([A-HJ-Z])(?=\s*[.!,;]|\s*$)", re.MULTILINE)
# "B is correct", "C would be the best choice", "B\u9009\u9879"; not "hepatitis B is most likely".
_VERDICT = re.compile(
    rf"""(?: ^ | [.,;:!?\n]\s* | \b(?:option|choice|answer|that|think|believe)\s+ ) [(\[]?([a-z])[)\]]?
    (?: \u9009\u9879 | {_LINK}\s+ (?:the\s+|clearly\s+)? (?:most\s+|best\s+)?
        (?: correct | right | true | best | answer | choice | option | likely | appropriate )\b )""",
    _FLAGS,
)
_NAMED = re.compile(r"\b(?:option|choice)\s*[({]?\s*([a-z])\s*[)}]?(?![\w'])", _FLAGS)
_LEADING = re.compile(rf"^(?: [\s>'\-\u2022] | \d+[.)]\s )* {_LETTER}", _FLAGS)
# A letter alone on the first line, whatever is explained below it; or an opened bracket where the answer was cut off.
_ALONE = re.compile(r"^(?:[(\[]?([a-z])[)\].]?[ \t]*\n|[(\[]\s*([a-z])\s*$)", re.IGNORECASE)
_LISTED = re.compile(r"^\W*([a-z])\W*\s*(?:,|and|or|&|/)\s*\W*([a-z])(?:\W|$)", re.IGNORECASE)

_ONE = r"(?: [(\[]\s*[a-z]\s*[)\]] | \b[a-z]\b )"
_SEVERAL = rf"{_ONE} (?: \s{{0,9}}(?: ,(?:\s?(?:and|or))? | and | or | & )\s{{0,9}} {_ONE} ){{0,9}}"
# "not (c)", "can't be A", "rule out A and B"; "A and B are wrong", "options A and B can be excluded", "incorrect: (A)".
_EXCLUDED = re.compile(
    rf"""\b(?: not | n't | cannot | rather\s+than | instead\s+of | excludes? | eliminates? | rules?\s+out | incorrect\s*: )
        \s+ (?: (?:choose|select|pick|be|the)\s+ )* (?: (?:options?|choices?|answer)\s+ )?
        (?: [(\[]\s*[a-z]\s*[)\]] | [a-z](?= \s*[).,;] | \s*$ | \s+(?:but|and|so)\b ) ) (?: \s{{0,9}}(?: , | and | or | & )\s{{0,9}}{_ONE}(?=\W|$) ){{0,9}}
    | (?: \b(?:options?|choices?)\s+ )? {_SEVERAL}
        \s+ (?: is | are | was | were | can(?:not)?\s+be | could\s+be )\s+ (?: clearly\s+ | both\s+ | all\s+ )?
        (?: wrong | incorrect | false | excluded | eliminated | ruled\s+out | unlikely | not\b(?!\s+wrong) )""",
    _FLAGS,
)
_CIRCLED = {0x24B6 + n: chr(97 + n) for n in range(26)} | {0x24D0 + n: chr(97 + n) for n in range(26)}
_PARENTHESIZED = {0x249C + n: f"({chr(97 + n)})" for n in range(26)}
_APOSTROPHES = str.maketrans({"\u2019": "'", **{chr(code): text for code, text in (_CIRCLED | _PARENTHESIZED).items()}})
_QUOTE = re.compile(r"(?<!\w)'|'(?!\w)")


def stated_letter(text: str, offered: Collection[str] | None = None) -> str | None:
    """Return the one option letter that an answer commits to, in lower case, or None.

    Markup is removed first, and letters that the answer excludes ("not B", "A and B are wrong") are ignored. Then, in this
    order: a letter after "answer is" and the like or called correct; after "option"; alone on the first line; at the start
    ("B", "b) mild", "(b) mild"); in brackets. An answer that names two different letters of the same kind, or starts with a
    letter and brackets another, commits to none.

    Args:
        text: the answer.
        offered: the options' letters. Only these count. Without them the letters a to j count, and a letter in brackets
            only at the start of the answer.
    """
    plain = _QUOTE.sub(" ", strip_markup(text).translate(_APOSTROPHES))
    answer = _EXCLUDED.sub(" ", plain).strip()
    allowed = USUAL_LETTERS if offered is None else frozenset(offered)
    for patterns in ((_STATED, _STATED_UPPER, _VERDICT, _CONCLUDED), (_NAMED,)):
        if stated := {letter for pattern in patterns for letter in _letters(pattern, answer, allowed)}:
            return stated.pop() if len(stated) == 1 else None
    if alone := _letters(_ALONE, answer, allowed):
        return alone.pop()
    bracketed = _letters(_BRACKETED, answer, allowed)
    listed = _LISTED.match(answer)
    if listed and listed.group(1).lower() != listed.group(2).lower():
        return None
    if leading := _LEADING.match(answer):
        letter = (leading.group(1) or leading.group(2)).lower()
        return letter if letter in allowed and bracketed <= {letter} else None
    return bracketed.pop() if offered is not None and len(bracketed) == 1 else None


def _letters(pattern: re.Pattern[str], text: str, allowed: Collection[str]) -> set[str]:
    """Return the allowed letters that a pattern finds."""
    found = {next(filter(None, match.groups())).lower() for match in pattern.finditer(text)}
    return found & set(allowed)
