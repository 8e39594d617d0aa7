"""Base of the sections of a protocol."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def matching(pattern: str, words: str) -> AfterValidator:
    """Return a check that the whole text matches a pattern.

    Args:
        words: what is allowed, for the message.
    """

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {words}")
        return value

    return AfterValidator(check)


Name = Annotated[
    str,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        "at most 64 letters, digits, dots, hyphens and underscores, a letter or digit first",
    ),
]


class Section(BaseModel):
    """Base of all sections: strict types, finite numbers, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
