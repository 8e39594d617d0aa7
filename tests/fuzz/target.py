"""What a format is to the harness: its undamaged files, the function that reads it, and the rule for a wrong result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .mutators import BINARY, Mutator

#: name that stands in the headers and records of all seeds and must not occur in any message
MARKER = "ZZMARKER"


@dataclass(frozen=True)
class Change:
    """How a file was changed: its undamaged and its damaged bytes, and the names of the mutators."""

    before: bytes
    after: bytes
    mutators: list[str]

    @property
    def is_cut(self) -> bool:
        """Whether only the end is missing."""
        return len(self.after) < len(self.before) and self.before.startswith(self.after)


Judge = Callable[[Any, Any, Change], str]


def no_rule(good: Any, found: Any, change: Change) -> str:
    """Accept every result: any change makes another valid file of this format."""
    return ""


@dataclass(frozen=True)
class Target:
    """A format.

    Attributes:
        name: as shown in the table.
        prepare: writes undamaged files into an empty folder and returns those to damage.
        run: reads the damaged file and returns a result that can be compared with `==`.
        judge: gets the results of the undamaged and of the damaged file, and returns what is wrong with the second, or "".
        mutators: what is done to a file.
        weight: how often the format is drawn.
        names_file: whether a refusal must name the file or its folder.
    """

    name: str
    prepare: Callable[[Path], list[Path]]
    run: Callable[[Path], Any]
    judge: Judge = no_rule
    mutators: tuple[Mutator, ...] = BINARY
    weight: int = 10
    names_file: bool = True
