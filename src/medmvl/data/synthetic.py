"""The mark of synthetic data: the note that phantoms leave in the folder they are written to."""

from __future__ import annotations

from pathlib import Path

from medmvl.files import write_text

NOTE_FILE = "README.txt"

#: License of what this toolkit draws; it takes the place of the license of the data set whose layout the phantoms have.
LICENSE = "Apache-2.0 (drawn by medmvl; synthetic)"

_BEGINNING = "Synthetic phantoms in the layout of "


def write_note(root: Path, layout: str, more: str = "") -> None:
    """Write into `root` that its files are phantoms in a layout, such as that of a public data set.

    Args:
        root: their folder.
        layout: name of the layout.
        more: text below the note.
    """
    write_text(root / NOTE_FILE, f"{_BEGINNING}{layout}. No patient, no clinical meaning.\n{more}")


def read_note(root: Path) -> str | None:
    """Return the first sentence of the note of `write_note` in `root`, without its full stop; None if there is none."""
    try:
        with (root / NOTE_FILE).open(encoding="utf-8") as file:
            first = file.readline(1000)
    except (OSError, UnicodeDecodeError):
        return None
    return first.partition(". ")[0].strip() if first.startswith(_BEGINNING) else None


def is_synthetic(root: Path) -> bool:
    """Return whether `root` holds the note of `write_note`."""
    return read_note(root) is not None
