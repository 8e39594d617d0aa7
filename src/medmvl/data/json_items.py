"""Positions of the items of a JSON array in its text, so that each item can be decoded alone."""

from __future__ import annotations

import json
import re

from medmvl.files import BAD_JSON

_WHITE = re.compile(r"[ \t\r\n]*")
#: What the scan of a damaged array looks at: whole strings, brackets and commas.
_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)


def item_spans(text: str) -> list[tuple[int, int]]:
    """Return (begin, end) in characters of each item of the JSON array `text`.

    An item that the JSON parser refuses (too long an integer, too deep a nesting, a misspelt literal) is still found by
    its brackets, so that one such item does not hide the others.

    Raises:
        ValueError: if the text is no array.
        IndexError: if it ends in the middle.
    """
    try:
        return _parsed_spans(text)
    except _ItemError:
        return _scanned_spans(text)


class _ItemError(Exception):
    """The parser refuses an item."""


def _parsed_spans(text: str) -> list[tuple[int, int]]:
    decoder, spans = json.JSONDecoder(), []
    position = _after_white(text, text.index("[") + 1)
    while text[position] != "]":
        try:
            _, end = decoder.raw_decode(text, position)
        except BAD_JSON as error:
            raise _ItemError from error
        spans.append((position, end))
        position = _after_white(text, end)
        if text[position] == ",":
            position = _after_white(text, position + 1)
            if text[position] == "]":
                raise ValueError(f"there is a comma but no item after item {len(spans)}")
        elif text[position] != "]":
            raise ValueError(f"a comma or the closing bracket is missing after item {len(spans)}")
    _check_end(text, position)
    return spans


def _scanned_spans(text: str) -> list[tuple[int, int]]:
    """Return the spans between the commas of the outermost level, found by counting brackets."""
    spans: list[tuple[int, int]] = []
    start = begin = text.index("[") + 1
    depth = 1
    for mark in _MARK.finditer(text, start):
        kind = mark.group()[0]
        if kind in "[{":
            depth += 1
        elif kind in "]}":
            depth -= 1
        if (kind == "," and depth == 1) or depth == 0:
            span = text[begin : mark.start()]
            if span.strip():
                lead = len(span) - len(span.lstrip())
                spans.append((begin + lead, begin + len(span.rstrip())))
            begin = mark.end()
        if depth == 0:
            _check_end(text, mark.start())
            return spans
    raise IndexError("the closing bracket is missing")


def _check_end(text: str, closing: int) -> None:
    if _after_white(text, closing + 1) != len(text):
        raise ValueError("there is more text after the closing bracket")


def _after_white(text: str, position: int) -> int:
    match = _WHITE.match(text, position)
    return match.end() if match else position
