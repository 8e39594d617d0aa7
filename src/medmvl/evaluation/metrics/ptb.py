"""A Penn Treebank tokenizer in Python, close to the Java one (CoreNLP 3.4.1) behind the COCO caption scorers.

It lower-cases, splits punctuation and English clitics, and drops the marks that pycocoevalcap drops. That list spells
brackets in upper case while the text is lower-cased, so round brackets survive as `-lrb-` and `-rrb-`; published numbers
contain them. tests/evaluation/ptb_java.jsonl holds outputs of the Java original; docs/evaluation.md gives the agreement.
"""

from __future__ import annotations

import re
from functools import lru_cache

# pycocoevalcap's PUNCTUATIONS, less the upper-case bracket names that never match lower-cased tokens.
_DROPPED = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})
_TYPOGRAPHIC = str.maketrans({"\u2019": "'", "\u2018": "'", '"': " ` ", "\u201c": " ` ", "\u201d": " ` ", "\u2026": " ... ",
                              "\u2013": " -- ", "\u2014": " -- "})  # fmt: skip
_FRACTIONS = {"\u00bd": "1/2", "\u2153": "1/3", "\u2154": "2/3", "\u00bc": "1/4", "\u00be": "3/4"}
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
    r"(?:dr|mr|mrs|ms|prof|st|rt|lt|vs|etc|al|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun|inc|ltd"
    r"|co|corp|md|jr|sr|mt|ft|bros|e\.g|i\.e|a\.m|p\.m|ph\.d|m\.d)\.(?=[\s,;:]|$)"
    r"|(?:no|nos|fig|figs|pp?|art|sec)\.(?=\s+\d)"
    r"|[a-z]+\.(?=[,;])"  # a full stop before another mark ends an abbreviation: "fx.,"
    r"|(?:[a-z]\.){2,}(?:-[^\W_]+)?(?=\W|$)"  # i.v., p.o., u.s., u.s.-guided
    r"|\b[a-z]\.(?=\s+(?!the\b)\S|\s*$)"  # an initial: r. kidney, grade a.; "the" opens a new sentence
)
_ADDRESS = r"https?://[^\s<>\"]*[^\s<>\".,;!?)]|[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
_WORD = r"[^\W_]+(?:[-/_'\u2019+][^\W_]+|\.[^\W\d_]+(?=\W|$)|[.,:]\d+)*"
_TOKEN = re.compile(
    rf"{_ADDRESS}|{_ABBREVIATION}"
    r"|\d+\.\d+(?=[^\W\d_])"  # 98.6F is two tokens
    r"|\d*x\d+(?=\.\d)|\.\d+(?=[^\W\d_])"  # 5x2.5mm is three tokens: 5x2, .5, mm
    r"|\d+/\d+(?:rds|ths|th)\b"
    rf"|[-+]?\d*[.,]?\d+(?:[.,:/]\d+)*(?:-[^\W_]+)*(?![\w])"  # 1.5, 1,000, 3/4, 1.5-cm
    rf"|'\d\ds?\b"  # '80s
    rf"|{_WORD}"
    r"|\.\.\.|--+|''|``|_+|'(?:s|m|d|ll|re|ve)\b|\*+|[?!]{2,}"
    r"|[^\w\s]"
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
    for fraction, digits in _FRACTIONS.items():
        lowered = lowered.replace(fraction, f" {digits} ")
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
