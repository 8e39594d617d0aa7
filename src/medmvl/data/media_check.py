"""Reading of the images and volumes that records name, each once, to find those that cannot be read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from medmvl.data.dataset import resolve_below
from medmvl.data.read_options import ReadOptions, reading_of, with_reading
from medmvl.data.roots import Root
from medmvl.errors import DataError, MedMVLError, shown
from medmvl.remote import RemotePath, exists


@dataclass(slots=True)
class Verdict:
    """What looking at one file gave: a fault or "", and the reader's warnings. Files are named as in the record."""

    fault: str = ""
    warnings: list[str] = field(default_factory=list)


class MediaCheck:
    """Looks at files below their roots and remembers what it found.

    Args:
        read: decode them; else only whether they are there is checked.
    """

    def __init__(self, read: bool) -> None:
        self._read = read
        self._found: dict[tuple[str, str], Verdict] = {}

    def look(self, kind: str, root: Root, relative: str, reading: ReadOptions) -> tuple[Verdict, bool]:
        """Return what is found of a file, and whether it is looked at for the first time.

        Args:
            kind: "image" or "volume".
            root: folder or URL that the path is relative to.
            relative: the path in the record.
            reading: options that it is read with.
        """
        try:
            path = resolve_below(root, relative, kind)
            if isinstance(path, RemotePath) and not exists(path):
                raise DataError(f"The {kind} {shown(relative, 200)} does not exist below {root}.")
        except DataError as error:
            return Verdict(str(error)), True
        (path,) = with_reading([path], reading)
        first = (kind, path) not in self._found
        if first:
            self._found[kind, path] = _verdict(kind, path, relative) if self._read else Verdict()
        return self._found[kind, path], first


def _verdict(kind: str, path: str, relative: str) -> Verdict:
    """Read one file; an exception of any library is a fault of that file, so that the check continues."""
    try:
        return Verdict(warnings=_read(kind, path))
    except MedMVLError as error:
        message = str(error).replace(f"{path}{os.sep}", "").replace(str(path), relative)
        return Verdict(fault=message if Path(relative).name in message else f"{relative}: {message}")
    except (Exception, RecursionError, MemoryError) as error:
        # Texts of foreign libraries may quote what the file holds.
        return Verdict(fault=f"{relative} cannot be read ({type(error).__name__}).")


def _read(kind: str, path: str) -> list[str]:
    from medmvl.imaging import read_image, read_volume

    options = reading_of(path)
    plain = RemotePath(path) if isinstance(path, RemotePath) else str(path)
    if kind == "image":
        return list(read_image(plain, **options.for_image()).warnings)
    return list(read_volume(plain, **options.for_volume()).warnings)
