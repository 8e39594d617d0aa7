"""Spellings of a record's `answer_type`: closed and open questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: In lower case, with "-" for white space.
CLOSED_TYPES = frozenset(
    {"closed", "close", "closed-ended", "close-ended", "closed-end", "close-end", "yes/no", "yes-no", "yesno", "binary", "choice",
     "multiple-choice", "multi-choice", "mcq"}
)  # fmt: skip
OPEN_TYPES = frozenset(
    {
        "open",
        "open-ended",
        "open-end",
        "free-form",
        "free-text",
        "free-response",
        "text",
        "short",
        "long",
        "other",
        "number",
    }
)


def answer_type(record: Mapping[str, Any]) -> str:
    """Return a record's `answer_type` in lower case, with "-" for white space and "_"; "" without one."""
    value = record.get("answer_type")
    return "" if value is None else "-".join(str(value).lower().replace("_", " ").split()).replace("--", "-")


def is_known_answer_type(record: Mapping[str, Any]) -> bool:
    """Whether a record has no `answer_type`, or one that says if the question is closed or open."""
    kind = answer_type(record)
    return not kind or kind in CLOSED_TYPES or kind in OPEN_TYPES
