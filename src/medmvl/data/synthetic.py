"""The mark of synthetic data: the note that phantoms leave in the folder they are written to."""

from __future__ import annotations

from pathlib import Path

from medmvl.files import write_text

NOTE_FILE = "README.txt"

#: License of what this toolkit draws; it takes the place of the license of the data set whose layout the phantoms have.
LICENSE = "Apache-2.0 (drawn by medmvl; synthetic)"

_BEGINNING = "Synthetic phantoms in the layout of "


def write_note(root: Path, layout: str) -> None:
    """Write into `root` that its files are phantoms in the layout of a public data set."""
    write_text(root / NOTE_FILE, f"{_BEGINNING}{layout}. No patient, no clinical meaning.\n")


def is_synthetic(root: Path) -> bool:
    """Return whether `root` holds the note of `write_note`."""
    try:
        return (root / NOTE_FILE).read_text(encoding="utf-8").startswith(_BEGINNING)
    except (OSError, UnicodeDecodeError):
        return False
