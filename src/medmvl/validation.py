"""Faults that pydantic finds in settings and requests, in plain words.

The callers name the place of a fault in their own way (a key of a recipe, a flag, a field of a request); the words for what is
allowed are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from medmvl.errors import shown

_KEYS = "must hold keys and values"
_LIST = "must be a list, such as [a, b]"
_NUMBER, _WHOLE, _SWITCH = "must be a number", "must be a whole number", "must be true or false"
#: Kinds of pydantic's errors (https://docs.pydantic.dev/latest/errors/validation_errors) -> what is allowed.
_ALLOWED = {
    "missing": "this key is required",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "finite_number": "must be a finite number",
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "int_type": _WHOLE,
    "bool_parsing": _SWITCH,
    "bool_type": _SWITCH,
    "string_type": "must be a text",
    "path_type": "must be a path",
    "model_type": _KEYS,
    "model_attributes_type": _KEYS,
    "dict_type": _KEYS,
    "mapping_type": _KEYS,
    "list_type": _LIST,
    "tuple_type": _LIST,
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "too_short": "must have {min_length} or more entries, not {actual_length}",
    "too_long": "must have at most {max_length} entries, not {actual_length}",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have at most {max_length} characters",
}


def allowed(detail: ErrorDetails | Mapping[str, Any]) -> str:
    """Return what a value must be, to follow its name: "must be a whole number".

    Our own checks (`ValueError`) speak for themselves, and kinds without words of ours keep pydantic's.

    Args:
        detail: a fault as `ValidationError.errors` gives it.
    """
    words = _ALLOWED.get(detail["type"])
    if words is None:
        return str(detail["msg"]).removeprefix("Value error, ")
    return words.format(**{name: _number(value) for name, value in detail.get("ctx", {}).items()})


def allowed_and_given(detail: ErrorDetails | Mapping[str, Any]) -> str:
    """Return what a value must be, and the value if it is a text, a number, a truth value or null."""
    came = detail["input"]
    given = f" (got {shown(came)})" if isinstance(came, str | int | float | bool | type(None)) else ""
    return allowed(detail) + ("" if detail["type"] == "missing" else given)


def _number(value: Any) -> Any:
    """Return a bound without a needless ".0"."""
    return f"{value:g}" if isinstance(value, float) else value
