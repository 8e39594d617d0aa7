"""Boxes as text in Uni-Med's form, `{<x1><y1><x2><y2>}` in hundredths of the picture, and questions about them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

# Uni-Med asks the first form at test time and one of several when training; the other wordings are ours.
REFER = (
    "give me the location of {object}",
    "where is the {object}? answer with a box",
    "show the {object} with a box",
    "from this image, locate the {object}",
    "mark the {object} with a box",
)
IDENTIFY = (
    "what object is in this location {box}",
    "name the object inside {box}",
    "what does the box {box} contain",
    "which structure lies within {box}",
    "identify the object at {box}",
)


def box_text(box: Sequence[float], size: tuple[int, int]) -> str:
    """Return the text of a pixel box (x, y, w, h) in a picture of `size` (width, height).

    Each coordinate is divided by the picture's width or height, multiplied by 100 and truncated, as Uni-Med does.

    >>> box_text((56, 73, 190, 142), (512, 512))
    '{<10><14><48><41>}'
    """
    x, y, w, h = box
    width, height = size
    corners = (x / width, y / height, (x + w) / width, (y + h) / height)
    return "{" + "".join(f"<{int(corner * 100)}>" for corner in corners) + "}"


def phrase(forms: tuple[str, ...], key: str, *, evaluation: bool) -> str:
    """Return the test form, or for training a form chosen by `key` (the same one at every run)."""
    return forms[0] if evaluation else forms[zlib.crc32(key.encode()) % len(forms)]
