"""Box text of other models: Qwen-VL tags, JSON with `bbox_2d`, and plain lists in fractions, percent, thousandths or pixels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from medmvl.errors import EvaluationError, did_you_mean

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""

_GAP = r"\s{0,20}"  # bounded: a page of blanks must not be searched again from each of its blanks
_NUMBER = rf"([-+]?(?:\d{{1,20}}\.?\d{{0,20}}|\.\d{{1,20}})(?:[eE][-+]?\d{{1,3}})?)(?:{_GAP}%)?"
_COMMA = rf"(?:{_GAP}[,;]{_GAP}|\s{{1,20}})"
_POINT = rf"{_NUMBER}{_COMMA}{_NUMBER}"
# Four numbers in brackets, or two points: "[1, 2, 3, 4]", "<box>1 2 3 4</box>", "(1,2),(3,4)", "[[1,2],[3,4]]".
_FOUR = rf"[\[(<>]{_GAP}{_POINT}(?:{_GAP}[\])]{_GAP},?{_GAP}[\[(]{_GAP}|{_COMMA}){_POINT}{_GAP}[\])><]"
# "x1=1, y1=2, x2=3, y2=4", {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}.
_KEYED = r"\W{1,20}".join(
    rf"\b{axis}_?(?:{end})['\"]?{_GAP}[:=]{_GAP}{_NUMBER}" for end in ("1|min", "2|max") for axis in ("x", "y")
)
_LIST = re.compile(rf"(?:{_FOUR}|{_KEYED})", re.IGNORECASE)
_TAGGED = re.compile(rf"<(?:box|\|box_start\|)>{_GAP}\({_GAP}{_POINT}{_GAP}\){_GAP},{_GAP}\({_GAP}{_POINT}{_GAP}\)")
_JSON = re.compile(rf"['\"]bbox(?:_2d)?['\"]{_GAP}:{_GAP}\[{_GAP}{_POINT}{_COMMA}{_POINT}{_GAP}\]")

#: format -> (patterns, of which the first that finds a box is taken; divisor of the coordinates, None for pixels)
FORMATS: Mapping[str, tuple[tuple[re.Pattern[str], ...], float | None]] = {
    "qwen-vl": ((_TAGGED,), 1000.0),  # <box>(x1,y1),(x2,y2)</box>, also Qwen2-VL's <|box_start|>
    "qwen2.5-vl": ((_JSON, _LIST), None),  # {"bbox_2d": [x1, y1, x2, y2]} in pixels
    "qwen3-vl": ((_JSON, _LIST), 1000.0),
    "list-fraction": ((_LIST,), 1.0),
    "list-percent": ((_LIST,), 100.0),
    "list-thousandth": ((_LIST,), 1000.0),
    "list-pixel": ((_LIST,), None),
}


def foreign_boxes(name: str) -> Callable[[str, tuple[int, int]], list[Box]]:
    """Return the reader of a format of `FORMATS`: (text, image size (width, height)) -> boxes in pixels.

    Raises:
        EvaluationError: for an unknown format.
    """
    if name not in FORMATS:
        raise EvaluationError(f"Unknown box format {name!r}. {did_you_mean(name, FORMATS)}")
    patterns, divisor = FORMATS[name]

    def read(text: str, image_size: tuple[int, int]) -> list[Box]:
        width, height = image_size if divisor is not None else (1.0, 1.0)
        found = next((matches for pattern in patterns if (matches := list(pattern.finditer(text)))), [])
        boxes = []
        for match in found:
            x1, y1, x2, y2 = (float(group) / (divisor or 1.0) for group in match.groups() if group is not None)
            boxes.append((x1 * width, y1 * height, x2 * width, y2 * height))
        return boxes

    return read
