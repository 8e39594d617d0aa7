"""A Penn-Treebank tokeniser in Python, close to the Java one (CoreNLP 3.4.1) behind the COCO caption scorers.

It lower-cases, splits punctuation and English clitics, and drops the marks that pycocoevalcap drops. That list spells
brackets in upper case while the text is lower-cased, so round brackets survive as `-lrb-` and `-rrb-`: kept, because
published numbers contain it. Differences to the Java original are confined to rare tokens (URLs, emoticons, unusual
abbreviations); docs/evaluation.md gives the measured agreement.
"""

from __future__ import annotations

import re
from functools import lru_cache

# pycocoevalcap's PUNCTUATIONS, less the upper-case bracket names that never match lower-cased tokens.
_DROPPED = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})
_TYPOGRAPHIC = str.maketrans({"\u2019": "'", "\u2018": "'", '"': " ` ", "\u201c": " ` ", "\u201d": " ` ", "\u2026": " ... ",
                              "\u2013": " -- ", "\u2014": " -- "})  # fmt: skip
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CLITIC = r"(?:n't|'s|'m|'d|'ll|'re|'ve)"
_SPLIT_WORDS = {
    "cannot": ["can", "not"],
    "gonna": ["gon", "na"],
    "gotta": ["got", "ta"],
    "gimme": ["gim", "me"],
    "lemme": ["lem", "me"],
    "wanna": ["wan", "na"],
    "y'all": ["y'", "all"],
}
# Abbreviations that keep their full stop (those of CoreNLP's lexer that reports use), and those that keep it only
# before a number ("no. 5", "fig. 3").
_ABBREVIATION = (
    r"(?:dr|mr|mrs|ms|prof|st|rt|lt|vs|etc|al|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|inc|ltd|co|corp|jr|sr|mt|ft|bros"
    r"|e\.g|i\.e|a\.m|p\.m|ph\.d|m\.d)\.(?=\s|$)"
    r"|(?:no|nos|fig|figs|pp?|vol|art|sec)\.(?=\s+\d)"
    r"|(?:[a-z]\.){2,}(?=\W|$)"  # i.v., p.o., u.s.
    r"|\b[a-z]\.(?=\s+(?!the\b)\S)"  # an initial: r. kidney; "the" opens a new sentence
)
_WORD = r"[^\W_]+(?:[-/_'\u2019+][^\W_]+|\.[^\W\d_]+(?=\W|$)|[.,:]\d+)*"
_TOKEN = re.compile(
    rf"{_ABBREVIATION}"
    r"|\d+\.\d+(?=[^\W\d_])"  # 98.6F is two tokens
    rf"|[-+]?\d*[.,]?\d+(?:[.,:/]\d+)*(?:-[^\W_]+)*(?![\w])"  # 1.5, 1,000, 3/4, 1.5-cm
    rf"|{_WORD}"
    r"|\.\.\.|--+|''|``"
    r"|[^\w\s]|_"
)
_NOT_CLITIC = re.compile(r"^(.+)n't$")
_CLITIC_END = re.compile(r"^(.+?)('s|'m|'d|'ll|'re|'ve)$")


@lru_cache(maxsize=1 << 16)  # four metrics of a report ask for the same tokens
def ptb_tokens(text: str) -> list[str]:
    """Return the lower-cased tokens of `text` as the COCO caption scorers count them.

    >>> " ".join(ptb_tokens('The heart is 1.5-cm (mild); "stable", left/right?'))
    'the heart is 1.5-cm -lrb- mild -rrb- stable left/right'
    """
    lowered = text.lower().translate(_TYPOGRAPHIC)
    tokens: list[str] = []
    for raw in _TOKEN.findall(lowered):
        tokens.extend(_split_word(raw))
    return [_BRACKETS.get(token, token) for token in tokens if token not in _DROPPED]


def _split_word(token: str) -> list[str]:
    """Cut clitics off a word ("don't" -> "do", "n't") and split the few fused words."""
    if token in _SPLIT_WORDS:
        return _SPLIT_WORDS[token]
    negated = _NOT_CLITIC.match(token)
    if negated:
        return [negated.group(1), "n't"]
    ending = _CLITIC_END.match(token)
    return [ending.group(1), ending.group(2)] if ending else [token]
