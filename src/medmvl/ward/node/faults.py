"""Descriptions of unexpected errors for the log, without their texts, which may quote patients' attributes."""

from __future__ import annotations

import traceback
from pathlib import Path


def describe_fault(error: BaseException) -> str:
    """Return the type of an error and the lines of code that it passed, innermost last; never its message."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = ", ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__} at {lines or 'an unknown place'}"
