"""Errors that a user's input can cause, and helpers for their messages.

Every error a user's input can trigger is a `MedMVLError`; the command line prints its message and
exits with status 2. A message says what came, what is allowed, and what to do. Any other exception is a bug.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

#: Longest text of letters and digits alone that messages show; longer ones may be pixels.
_SHORT = 64


class MedMVLError(Exception):
    """Base of every error that a user's input can cause."""


class RecipeError(MedMVLError):
    """A recipe, a setting or the name of a part is unknown or not valid."""


class DataError(MedMVLError):
    """A record or a data file does not follow the record format."""


class ImagingError(DataError):
    """An image or a volume cannot be read, or its content is implausible."""


class GeometryError(ImagingError):
    """A volume, a cache or a model was prepared with another geometry than the requested one."""


class ModelError(MedMVLError):
    """Parts do not fit together, or a batch does not fit the model."""


class CheckpointError(MedMVLError):
    """A checkpoint folder is incomplete, damaged, or of a layout that is not supported."""


class OutputError(CheckpointError):
    """An output folder cannot be written."""


class BusyError(MedMVLError):
    """Another process is writing to the same output."""


class TrainingError(MedMVLError):
    """A training run cannot start or continue."""


class EvaluationError(MedMVLError):
    """Predictions, references or a benchmark's settings cannot be scored."""


class WardError(MedMVLError):
    """A protocol, a DICOM study or a DICOM service cannot be used as asked."""


class CancelledError(MedMVLError):
    """The caller cancelled a computation."""


class MissingExtraError(MedMVLError):
    """A required optional dependency is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import and return the optional `module`.

    Raises:
        MissingExtraError: naming the extra of medmvl to install, if the module is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # the module is installed, but one of its own imports is missing
        raise MissingExtraError(
            f"This needs the package {module.split('.')[0]!r}, which is not installed. "
            f"Install it with: pip install 'medmvl[{extra}]'"
        ) from error


@contextmanager
def naming(source: object) -> Iterator[None]:
    """Put the path of a file or folder in front of the message of our errors raised inside, unless they name it.

    Args:
        source: the path.
    """
    try:
        yield
    except MedMVLError as error:
        path = str(source)
        if path in str(error) and (os.sep in path or "." in path):  # a plain word may stand there by chance
            raise
        raise type(error)(f"{source}: {error}") from error.__cause__


def shown(value: object, limit: int = 80) -> str:
    """Return a value for a message: cut to `limit` characters, and only the kind or size of what may be pixels."""
    if isinstance(value, str):
        if value.startswith("data:"):
            return f"<data URI of {len(value)} characters>"
        if len(value) > _SHORT and re.fullmatch(r"[A-Za-z0-9+/=_\s-]+", value):
            return f"<text of {len(value)} characters, as of base64>"
        return repr(value) if len(value) <= limit else f"{value[:limit]!r}…"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict | list | tuple):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) >= 10**limit:
        return "an integer of many digits"
    return repr(value)[:limit]


def require_path(value: object, what: str) -> str | os.PathLike[str]:
    """Return a path.

    Raises:
        DataError: if it is of another type, or empty; an empty path would mean the working directory.
    """
    if not isinstance(value, str | os.PathLike):
        raise DataError(f"The {what} must be a path, not {type(value).__name__}.")
    if not os.fspath(value):
        raise DataError(f"The path of the {what} is empty.")
    return value


def counted(number: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun: "1 slice", "2 slices".

    Args:
        number: how many there are.
        one: the noun for one, with its verb where it has one.
        several: the same for another number; default: `one` with an s.
    """
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def the_named(noun: str, names: Sequence[str]) -> str:
    """Return names with their noun: "the column a", "the columns a, b"."""
    return f"the {noun}{'' if len(names) == 1 else 's'} {', '.join(names)}"


#: Most faults that one message lists, and most characters of each.
_LISTED, _LONGEST = 10, 300


def listed(head: str, faults: Sequence[str]) -> str:
    """Return a message with a head and its faults: one on the same line, several on lines of their own, at most 10 of them."""
    cut = [fault if len(fault) <= _LONGEST else f"{fault[:_LONGEST]}…" for fault in faults[:_LISTED]]
    if len(faults) > _LISTED:
        cut.append(f"and {len(faults) - _LISTED} more.")
    return " ".join([head, *cut]) if len(cut) == 1 else "\n  ".join([head, *cut])


def printable(text: str) -> str:
    """Return `text` with control characters (terminal escape sequences) written out; line ends and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the tail of an "unknown name" message: the closest known name, then all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:200], names, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names) if names else '(none)'}."
