"""Faults of a converter's settings in words: the flag, what is allowed, what came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from medmvl.errors import shown
from medmvl.validation import allowed

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

#: Kinds of pydantic's errors whose message states all bounds of the number.
_BOUNDED = ("greater_than_equal", "greater_than", "less_than_equal", "less_than", "float_parsing", "int_parsing")


def option_fault(options: type[BaseModel], detail: ErrorDetails) -> str:
    """Return one fault of a setting as a sentence.

    Args:
        options: the settings of the converter, which state the bounds.
        detail: the fault as pydantic gives it.
    """
    words = allowed(detail)
    if not detail["loc"]:
        return f"{words}."
    name = str(detail["loc"][0])
    flag = f"--{name.replace('_', '-')}"
    if not words.startswith("must be "):
        return f"{flag}: {words}."
    if detail["type"] in _BOUNDED:
        field = options.model_fields.get(name)
        number = "whole number" if detail["type"].startswith("int") else "number"
        words = f"must be a {number}{_bounds(field.metadata if field is not None else ())}"
    return f"{flag} {words}, not {shown(detail['input'])}."


def _bounds(metadata: Any) -> str:
    """Return the bounds of a number in words, such as " from 0 to 1"; "" without any."""
    limits = {key: getattr(rule, key) for rule in metadata for key in ("ge", "gt", "le", "lt") if hasattr(rule, key)}
    words = {"ge": "from", "gt": "above", "le": "to" if "ge" in limits else "of at most", "lt": "below"}
    return "".join(f" {words[key]} {limits[key]:g}" for key in ("ge", "gt", "le", "lt") if key in limits)
