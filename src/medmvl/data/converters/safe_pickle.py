"""Reading of foreign pickles without running their code.

A pickle may name any importable object and call it. This loader allows none, so a file can hold only numbers, texts, lists,
tuples, sets and dictionaries, which suffices for the published files.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from medmvl.errors import DataError
from medmvl.files import existing_file


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"it wants to import {module}.{name}, which a file of plain data never needs")


def load_plain_pickle(path: Path) -> Any:
    """Return the plain data of a pickle file.

    Raises:
        DataError: if the file is missing, damaged, or names anything that would have to be imported.
    """
    file = existing_file(path, "pickle")
    with file.open("rb") as handle:
        try:
            return _PlainUnpickler(handle, encoding="utf-8").load()
        except DataError as error:
            raise DataError(f"{file} is refused: {error}. Do not trust it.") from None
        except (
            pickle.UnpicklingError,
            EOFError,
            ValueError,
            IndexError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            MemoryError,  # a damaged length asks for the moon
        ) as error:
            raise DataError(f"{file} is not a readable pickle: {error}. Download it again.") from error
