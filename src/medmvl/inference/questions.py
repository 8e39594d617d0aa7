"""What callers hand over, questions with images and volumes, in the form that the processor takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from medmvl.data.read_options import ReadOptions, reading_of, with_reading
from medmvl.data.record import json_value
from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_ALIAS, VOLUME_PLACEHOLDER, Message, Sample
from medmvl.errors import DataError
from medmvl.processing.arguments import require_list


def visual_inputs(name: str, given: Any, read: ReadOptions | Mapping[str, Any] | None = None) -> list[Any]:
    """Return images or volumes as a list in which every path is a string that carries its reading options.

    Raises:
        DataError: if `given` is no list or tuple, or an entry is of a type that is not known.
    """
    given = require_list(name, given)
    reading = read if isinstance(read, ReadOptions) else ReadOptions.parse(read, "read")
    found: list[Any] = []
    for entry in given:
        if isinstance(entry, str | os.PathLike):
            own = reading_of(entry).over(reading)
            found += with_reading([os.fspath(entry) if not isinstance(entry, str) else str(entry)], own)
        elif entry is None or isinstance(entry, bytes | int | float | dict | list | tuple):
            raise DataError(f"{name} holds a {type(entry).__name__}. Give paths, or images and volumes already read.")
        else:
            found.append(entry)
    return found


def question(text: str, images: int, volumes: int) -> Sample:
    """Return a question as a sample; missing placeholders are put in front, a line each.

    Raises:
        DataError: if it is no text, blank, or holds half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise DataError(f"A question is a text, not a {type(text).__name__}. answer_many takes several.")
    if not text.strip():
        raise DataError("The question is empty.")
    json_value(text, "question")
    text = text.replace(VOLUME_ALIAS, VOLUME_PLACEHOLDER)
    if IMAGE_PLACEHOLDER not in text and VOLUME_PLACEHOLDER not in text:
        text = f"{IMAGE_PLACEHOLDER}\n" * images + f"{VOLUME_PLACEHOLDER}\n" * volumes + text
    return Sample("(question)", (Message("user", text),))
