"""Checks of arguments that users easily confuse: one path where a list is wanted, a list where a text is wanted."""

from __future__ import annotations

import os
from typing import Any

from medmvl.errors import DataError, shown


def require_list(name: str, given: Any) -> list[Any] | tuple[Any, ...]:
    """Return a list or tuple of images or volumes; None counts as an empty one.

    Raises:
        DataError: showing how a single one is given. A text would otherwise be taken letter by letter, "/" for a folder.
    """
    if given is None:
        return []
    if not isinstance(given, list | tuple):
        example = f"{name}=[{shown(os.fspath(given))}]" if isinstance(given, str | os.PathLike) else f"{name}=[...]"
        raise DataError(f"{name} must be a list, not {type(given).__name__}. Write {example}.")
    return given


def require_texts(given: Any) -> list[str]:
    """Return one text or several as a list.

    Raises:
        DataError: for anything else.
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"text must be a text or a list of texts, not {type(given).__name__}.")
    return list(texts)
