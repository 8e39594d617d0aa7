"""The errors a user can cause, and the two helpers that word them.

Every error a user's input can trigger is a `MedMVLError`; the command line prints its message on one line and
exits with status 2. A message says what came, what is allowed, and what to do. Anything else that escapes is a
bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class MedMVLError(Exception):
    """Base of every error that a user's input can cause."""


class RecipeError(MedMVLError):
    """A recipe, a setting or the name of a part is not one we know."""


class DataError(MedMVLError):
    """A record or a data file is not as the record format says."""


class ImagingError(DataError):
    """An image or a volume cannot be read, or reads as something it should not be."""


class GeometryError(ImagingError):
    """A volume, a cache or a model was prepared with another geometry than the one asked for."""


class ModelError(MedMVLError):
    """Parts do not fit together, or a batch does not fit the model."""


class CheckpointError(MedMVLError):
    """A checkpoint folder is incomplete, damaged, or of a layout that is not supported."""


class TrainingError(MedMVLError):
    """A training run cannot start or go on."""


class EvaluationError(MedMVLError):
    """Predictions, references or a benchmark's settings cannot be scored."""


class MissingExtraError(MedMVLError):
    """An optional dependency is needed and not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import the optional `module`, or say which extra of medmvl brings it.

    Raises:
        MissingExtraError: if the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # the module is there, something it needs is not: that is another story
        raise MissingExtraError(
            f"This needs the package {module.split('.')[0]!r}, which is not installed. "
            f"Install it with: pip install 'medmvl[{extra}]'"
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the tail of an "unknown name" message: the closest known name, then all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names) if names else '(none)'}."
