"""Faults of a converter's settings in words: the flag, what is allowed, what came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from medmvl.errors import shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

#: Kinds of pydantic's errors -> what the value must be.
_KINDS = {
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
}
_BOUNDS = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")


def option_fault(options: type[BaseModel], detail: ErrorDetails) -> str:
    """Return one fault of a setting as a sentence.

    Args:
        options: the settings of the converter, which state the bounds.
        detail: the fault as pydantic gives it.
    """
    if not detail["loc"]:
        return f"{detail['msg'].removeprefix('Value error, ')}."
    name = str(detail["loc"][0])
    allowed = _allowed(options, name, detail)
    flag = f"--{name.replace('_', '-')}"
    if allowed is None:
        return f"{flag}: {detail['msg'].removeprefix('Value error, ')}."
    return f"{flag} must be {allowed}, not {shown(detail['input'])}."


def _allowed(options: type[BaseModel], name: str, detail: ErrorDetails) -> str | None:
    """Return what a setting may be, in words; None if only pydantic's message says it."""
    kind = detail["type"]
    if kind == "literal_error":
        return f"one of {detail['ctx']['expected'].replace(chr(39), '')}"
    field = options.model_fields.get(name)
    bounds = _bounds(field.metadata if field is not None else ())
    if kind in _BOUNDS or kind in ("float_parsing", "int_parsing"):
        return f"{_KINDS.get(kind, 'a number')}{bounds}"
    return _KINDS.get(kind)


def _bounds(metadata: Any) -> str:
    """Return the bounds of a number in words, such as " from 0 to 1"; "" without any."""
    limits = {key: getattr(rule, key) for rule in metadata for key in ("ge", "gt", "le", "lt") if hasattr(rule, key)}
    words = {"ge": "from", "gt": "above", "le": "to" if "ge" in limits else "of at most", "lt": "below"}
    return "".join(f" {words[key]} {limits[key]:g}" for key in ("ge", "gt", "le", "lt") if key in limits)
