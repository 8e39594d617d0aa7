"""Uploads and their names in messages: files have numbers on the server, and visitors know them by their own names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmvl.serving.protection import without_paths

_FOLDERS = r"(?:/[^\s/'\":,;]+)*?"
#: A file that a reader was given: one in an unpacked archive, `archive-00003/00017.png`; an upload `00003`, perhaps with a suffix;
#: or one of a DICOM series, `00003-00017.dcm`. The first number is always the upload's. Without folders a suffix is needed.
_FILE = re.compile(
    rf"{_FOLDERS}/archive-(\d{{5}})\b(?:/\d{{5}})?(?:\.\w+)*"
    rf"|{_FOLDERS}/(\d{{5}})(?:-\d{{5}})?(?:\.\w+)*(?![\w/])"
    r"|(?<![\w/])(\d{5})(?:-\d{5})?(?:\.\w+)+"
)
#: The folder to which the files of a series are moved.
SERIES_FOLDER = "dicom"
_SERIES = re.compile(rf"(?:/[^\s/'\":,;]+)+/{SERIES_FOLDER}(?![\w/])")


@dataclass(eq=False)
class Upload:
    """A file that a visitor sends.

    Attributes:
        name: of the visitor, for display.
        path: where it is; a number of five digits in the folder of the files that are opened together.
        size: bytes received so far.
        complete: whether all of it has arrived.
    """

    name: str
    path: Path
    size: int = 0
    complete: bool = False


def upload_of(file: Path) -> str:
    """Return the upload's number in the name of a file, or of the archive that it was in."""
    archive = file.parent.name
    return archive.removeprefix("archive-") if archive.startswith("archive-") else file.name.split(".")[0]


def summary(names: Sequence[str]) -> str:
    """Return what to call files together: the first name, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} (+{len(names) - 1})"


def with_shown_names(message: str, uploads: Sequence[Upload]) -> str:
    """Return a message about uploads, in which they have the names under which they were sent.

    Args:
        message: of a reader; it may hold paths of the server.
        uploads: the files that were opened, not empty.

    Returns:
        The message without paths. One that names no file begins with the name of the only one, or of the first.
    """
    names = {upload.path.name: upload.name for upload in uploads}
    together = summary([upload.name for upload in uploads])

    def shown(match: re.Match[str]) -> str:
        return names.get(match[1] or match[2] or match[3], match[0])

    found = without_paths(_SERIES.sub(lambda _: together, _FILE.sub(shown, message)))
    return found if any(name in found for name in names.values()) else f"{together}: {found}"
