"""Records of phrases with boxes in a picture: where a phrase is (refer), and what is in its boxes (identify)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from medmvl.data.converters.boxtext import IDENTIFY, REFER, box_text, phrase
from medmvl.data.converters.converter import Record, qa_record
from medmvl.errors import DataError

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels; origin top left."""

TASKS = ("refer", "identify")


def parse_tasks(text: str, allowed: Sequence[str], title: str) -> set[str]:
    """Return the tasks of a comma-separated option.

    Raises:
        DataError: if one of them is not allowed.
    """
    tasks = {task.strip() for task in text.split(",")}
    if tasks - set(allowed):
        raise DataError(f"{title} has no task {sorted(tasks - set(allowed))}. Allowed: {', '.join(allowed)}.")
    return tasks


def is_inside(box: Box, size: tuple[int, int]) -> bool:
    """Return whether a box is not empty and inside a picture of (width, height), up to one pixel of rounding."""
    x, y, w, h = box
    return w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= size[0] + 1 and y + h <= size[1] + 1


def grounding_records(
    prefix: str, key: str, thing: str, boxes: Sequence[Box], size: tuple[int, int], tasks: set[str], **facts: Any
) -> Iterator[Record]:
    """Yield a record per task about one phrase; several boxes are written one after the other.

    Args:
        prefix: beginning of the ids, the data set's name.
        key: text that identifies the phrase within the data set.
        thing: the phrase or the name of the object.
        boxes: its boxes.
        size: width and height of the picture in pixels.
        tasks: some of `TASKS`.
        facts: further arguments of `qa_record` (image, evaluation) and keys of the record.
    """
    evaluation = bool(facts.get("evaluation"))
    ordered = sorted(boxes)
    text = " ".join(box_text(box, size) for box in ordered)
    asked = {
        "refer": (phrase(REFER, key, evaluation=evaluation).format(object=thing), text),
        "identify": (phrase(IDENTIFY, key, evaluation=evaluation).format(box=text), thing),
    }
    shared: dict[str, Any] = {
        "boxes": [list(box) for box in ordered],
        "image_size": list(size),
        "object": thing,
    } | facts
    for task in (task for task in TASKS if task in tasks):
        question, answer = asked[task]
        yield qa_record(f"{prefix}-{task}-{key}", question, answer, task=task, **shared)
