"""Parsing of box text and IoU metrics.

Box text is Uni-Med's: `{<x1><y1><x2><y2>}`, integers 0-100, each coordinate divided by the image's width or height,
times 100, truncated; origin top left. Reference boxes are pixels x, y, width, height under the record's `boxes`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medmvl.errors import EvaluationError, require, shown
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.foreign_boxes import Box, foreign_boxes
from medmvl.evaluation.metrics.metric import mean_metric

SCALE = 100  # Uni-Med's resolution of box text; the writing side is data.prepare.boxtext
_BOX_TEXT = re.compile(r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}")
#: Longest side of an image in pixels, and largest coordinate of a box.
_LARGEST_SIDE = 10**7


def parse_boxes(text: str, image_size: tuple[int, int]) -> list[Box]:
    """Return every box written in `text`, in pixels; spaces and `<unk>` inside the text are ignored."""
    return [_to_pixels(match, image_size) for match in _BOX_TEXT.finditer(_compact(text))]


def _compact(text: str) -> str:
    return re.sub(r"\s", "", text.replace("<unk>", ""))


def _to_pixels(match: re.Match[str], image_size: tuple[int, int]) -> Box:
    width, height = image_size
    x1, y1, x2, y2 = (int(group) / SCALE for group in match.groups())
    return x1 * width, y1 * height, x2 * width, y2 * height


def box_iou(first: Box, second: Box, *, inclusive: bool = False) -> float:
    """Return intersection over union of two boxes.

    Args:
        first: x1, y1, x2, y2 in pixels.
        second: likewise.
        inclusive: add 1 to every width, height and intersection side, as the published scorer does; boxes that only
            touch then overlap, and an inverted box is not repaired.
    """
    extra = 1.0 if inclusive else 0.0
    width = min(first[2], second[2]) - max(first[0], second[0]) + extra
    height = min(first[3], second[3]) - max(first[1], second[1]) + extra
    overlap = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0] + extra) * (box[3] - box[1] + extra) for box in (first, second)]
    union = sum(areas) - overlap
    return overlap / union if union > 0 else 0.0


def image_size(item: Item) -> tuple[int, int]:
    """Return the record's `image_size` as (width, height) in pixels.

    Raises:
        EvaluationError: if the record has none.
    """
    size = item.record.get("image_size")
    if not (isinstance(size, Sequence) and len(size) == 2 and all(map(_is_side, size))):
        raise EvaluationError(
            f"Record {shown(item.id)} is scored by boxes and has image_size = {str(size)[:80]}. It needs [width, height] in pixels."
        )
    return int(size[0]), int(size[1])


def _is_side(value: Any) -> bool:
    return isinstance(value, int | float) and 1 <= value <= _LARGEST_SIDE


def reference_boxes(item: Item) -> list[Box]:
    """Return the reference boxes in pixels.

    Read from, in this order: the record's `boxes` ([x, y, w, h], a list of those, a mapping name -> box, or SLAKE's list
    of one-key mappings); a pixel list as the reference answer (Uni-Med's evaluation files); box text in the answer.

    Raises:
        EvaluationError: if none of them holds a box.
    """
    boxes = _pixel_boxes(item.record.get("boxes"))
    if not boxes:
        numbers = re.fullmatch(r"\[([-\d.,\s]+)\]", item.reference.strip())
        boxes = _pixel_boxes([float(number) for number in numbers.group(1).split(",")]) if numbers else []
    if not boxes:
        boxes = parse_boxes(item.reference, image_size(item))
    if not boxes:
        raise EvaluationError(
            f"Record {item.id!r} is scored by boxes and holds none. "
            'Give it "boxes": [[x, y, width, height], ...] in pixels, or an answer such as {<10><14><48><41>}.'
        )
    return boxes


def _pixel_boxes(value: Any) -> list[Box]:
    if isinstance(value, Mapping):
        return [box for entry in value.values() for box in _pixel_boxes(entry)]
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    if len(value) == 4 and all(isinstance(number, int | float) and abs(number) <= _LARGEST_SIDE for number in value):
        x, y, width, height = map(float, value)
        return [(x, y, x + width, y + height)]
    return [box for entry in value for box in _pixel_boxes(entry)]


def matched_iou(predicted: Sequence[Box], references: Sequence[Box]) -> float:
    """Return the mean standard IoU over the reference boxes under the best one-to-one matching.

    Only the first len(references) predicted boxes count, so an answer cannot gain by listing many.
    """
    kept = predicted[: len(references)]
    if not kept:
        return 0.0
    table = np.array([[box_iou(box, reference) for reference in references] for box in kept])
    rows, columns = require("scipy.optimize", "eval").linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / len(references))


def predicted_boxes(item: Item) -> list[Box]:
    """Return the boxes in the answer, in pixels: in the record's `box_format` if it names one, else in Uni-Med's."""
    name = item.record.get("box_format")
    read = foreign_boxes(str(name)) if name else parse_boxes
    return read(item.prediction, image_size(item))


def item_iou(item: Item) -> float:
    """Return the standard IoU of one item: boxes may stand anywhere in the answer; none means 0."""
    return matched_iou(predicted_boxes(item), reference_boxes(item))


def item_iou_published(item: Item) -> float:
    """Return Uni-Med's IoU: the answer must start with the box text, inclusive pixels, one reference box."""
    match = _BOX_TEXT.match(_compact(item.prediction))
    if match is None:
        return 0.0
    return box_iou(_to_pixels(match, image_size(item)), reference_boxes(item)[0], inclusive=True)


def is_located(item: Item) -> bool:
    """Return whether the item asks for a box; one that asks what is in a box ("identify") does not."""
    if item.record.get("task") == "identify":
        return False
    return bool(_pixel_boxes(item.record.get("boxes"))) or _BOX_TEXT.search(_compact(item.reference)) is not None


MIOU = mean_metric(
    "miou",
    "Mean standard IoU: boxes may stand anywhere in the answer, the first as many as there are reference boxes are "
    "matched one to one; no box is 0.",
    item_iou,
)
ACC_IOU50 = mean_metric(
    "acc-iou50", "Share of items with a standard IoU above 0.5.", lambda item: float(item_iou(item) > 0.5)
)
MIOU_PUBLISHED = mean_metric(
    "miou-unimed",
    "Uni-Med's mean IoU: the answer must start with the box, inclusive pixels (+1 on every side).",
    item_iou_published,
)
