"""Images and volumes of own tables: paths, lists of paths, or embedded pictures, under names without identifiers."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medmvl.data.converters.converter import Job
from medmvl.data.converters.media import export_bytes, source_state
from medmvl.data.converters.own_identity import Identity, Masker
from medmvl.data.converters.own_paths import HIDDEN, PathScreen, exposure, letter_words
from medmvl.data.converters.own_tree import MOST_ENTRIES, PICTURE_SUFFIXES, VOLUME_SUFFIXES, SourceTree, media_suffix
from medmvl.data.origins import Origins
from medmvl.errors import shown
from medmvl.files import atomic

#: Missing paths that are searched for elsewhere in the export, until one is found.
_SEARCHED = 50
#: Most characters of a path in a message.
_MOST_SHOWN = 200
#: Arrays may be pictures or volumes.
_ARRAYS = (".npy", ".npz")
_SENTENCES = {
    "outside": "leaves the folder of the data",
    "missing": "does not exist",
    "empty": "is an empty file",
}


@dataclass(frozen=True)
class MediaColumn:
    """Where a table names its images or volumes.

    Attributes:
        kind: "image" or "image3d", the key of a record.
        name: the column; None for the images of a chat file.
    """

    kind: str
    name: str | None = None

    @property
    def path(self) -> str:
        """A path of the column, as the beginning of a sentence."""
        return "path of an image" if self.name is None else f"path in column {self.name!r}"

    @property
    def cell(self) -> str:
        """A cell of the column, as the beginning of a sentence."""
        return "image" if self.name is None else f"cell of column {self.name!r}"

    def foreign(self, source: Path) -> tuple[str, str] | None:
        """Return why an existing file or folder is of the other kind, and what to do; None if it may be right."""
        name, column = source.name.lower(), shlex.quote(self.name or "COLUMN")
        if self.kind == "image3d":
            if name.endswith(PICTURE_SUFFIXES):
                return "is a picture, but --volume takes volumes", f"Give the column of pictures as --image {column}."
            return None
        if source.is_dir():
            hint = f"A folder with a DICOM series is a volume: give the column as --volume {column}."
            return "is a folder, but --image takes files", hint
        if name.endswith(VOLUME_SUFFIXES) and not name.endswith(_ARRAYS):
            return "is a volume, but --image takes pictures", f"Give the column of volumes as --volume {column}."
        return None


#: The cells of a row with images and volumes, and the identity of its patient.
MediaRow = tuple[list[tuple[MediaColumn, Any]], Identity]


class MediaWriter:
    """Finds the files of table cells, and exports them if their names must not appear in records.

    Files are used where they are if no cell holds a picture and no path holds the identifier of a patient, or words that
    stand with one known patient only and may be a name. Otherwise all are linked (or copied, where the file system cannot
    link) below `out/media` under neutral names. The option `paths` decides otherwise.

    Args:
        job: the conversion.
        root: folder that the paths are relative to.
        rows: the cells of each row.
        masker: gives the keyed names of exported files.
    """

    def __init__(self, job: Job, root: Path, rows: list[MediaRow], masker: Masker) -> None:
        self._job, self._root, self._masker = job, root, masker
        self.screen = PathScreen(identity for _, identity in rows)
        self._tree = SourceTree(job.source, job.out, None if job.options.unnamed is not None else MOST_ENTRIES)
        self._rows = rows
        self._searched: dict[str, int] = {}
        self.exports = self._must_export()

    def _must_export(self) -> bool:
        """Return whether files must be exported, and note why, or that paths may tell patients."""
        cells = [(entry, identity) for cells, identity in self._rows for _, c in cells for entry in entries_of(c)]
        paths = [(entry, identity) for entry, identity in cells if isinstance(entry, str)]
        told, choice = exposure(self._job.source, paths, self.screen), self._job.options.paths
        unclear = f"{told.unclear} of them hold words that stand with one patient or row only and may be names"
        reasons = {
            "pictures were embedded in the table": len(paths) < len(cells),
            "--paths neutral was given": choice == "neutral",
            "paths named patients": choice == "auto" and told.identified,
            f"{unclear} (--paths keep leaves them as they are)": choice == "auto"
            and not told.identified
            and told.is_likely,
        }
        why = " and ".join(reason for reason, holds in reasons.items() if holds)
        if why:
            self._job.report.exported = True
            self._job.report.note(
                f"Files are in media/ of the output, for {why}. Linked files are the originals: their headers keep what identifies a "
                "patient. `medmvl data deidentify` makes copies without it."
            )
        elif told.identified or told.unclear:
            self._job.report.note(
                f"The records hold the paths of the table, and {'patients are named in them' if told.identified else unclear}. "
                "With --paths neutral the files are linked under neutral names."
            )
        return bool(why)

    def paths(self, cell: Any, column: MediaColumn, row: str, identity: Identity) -> list[str] | None:
        """Return the paths of a cell for the record; None after counting a faulty entry, which is named by its row."""
        found = []
        for entry in entries_of(cell):
            path = (
                self._path(entry, column, row, identity)
                if isinstance(entry, str)
                else self._embedded(entry, column, row, identity)
            )
            if path is None:
                return None
            found.append(path)
        return found

    def _path(self, name: str, column: MediaColumn, row: str, identity: Identity) -> str | None:
        source = self._source_of(name)
        state = source_state(source, self._job.source)
        foreign = column.foreign(source) if state == "usable" else None
        if state == "usable" and foreign is None:
            return self._link(source) if self.exports else os.path.relpath(source, self._job.source)
        reason = f"{column.path} {foreign[0] if foreign else _SENTENCES[state]}"
        if foreign:
            self._job.report.hints[reason] = foreign[1]
        elif state == "missing":
            self._hint_at_missing(reason, name, identity)
        self._job.report.fault(reason, row, _brief(self.screen.shown(name, identity)) or HIDDEN)
        return None

    def _source_of(self, name: str) -> Path:
        source = self._root / name
        if "\\" in name and source_state(source, self._job.source) != "usable":  # a table of Windows
            source = self._root / name.replace("\\", "/")
        return source

    def _hint_at_missing(self, reason: str, name: str, identity: Identity) -> None:
        """Say where a missing path was looked for, and once where it may be instead."""
        hints, count = self._job.report.hints, self._searched.get(reason, 0)
        hidden = self.screen.holds(str(self._root.resolve()), identity)
        place = "the folder of the table" if hidden else f"{self._root}, the folder of the table"
        hints.setdefault(reason, f"Paths were looked for below {place}; {HIDDEN} stands for an identifier.")
        if count >= _SEARCHED:
            return
        self._searched[reason] = count + 1
        found = self._tree.closest(os.path.relpath(self._root / name, self._job.source), self._named)
        if found is not None:
            self._searched[reason] = _SEARCHED
            there = self.screen.shown(os.path.relpath(self._job.source / found, self._root), identity) or HIDDEN
            hints[reason] += f" One may be meant for {there!r}: correct the table, or move the files."

    @cached_property
    def _named(self) -> set[str]:
        """The files and folders that rows name and that exist, relative to the source."""
        entries = {name for cells, _ in self._rows for _, cell in cells for name in _names_in(cell)}
        found = [self._source_of(name) for name in entries]
        return {self._relative(source) for source in found if source_state(source, self._job.source) == "usable"}

    def _relative(self, source: Path) -> str:
        return Path(os.path.relpath(source, self._job.source)).as_posix()

    @property
    def source_is_too_large(self) -> bool:
        """Whether the source would be searched for media that no row names, and is too large for it."""
        return bool(self._kinds) and self._tree.is_too_large

    @cached_property
    def _kinds(self) -> set[str]:
        return {column.kind for row, _ in self._rows for column, _ in row}

    def unnamed(self, cells: Iterable[Any]) -> list[tuple[str, str]]:
        """Return what `SourceTree.unnamed` finds: (what, path relative to the source) of media that no row names.

        Args:
            cells: further cells that may name files, of columns that are not in use.
        """
        further = {self._relative(self._root / name) for name in {name for cell in cells for name in _names_in(cell)}}
        return list(self._tree.unnamed(self._named | further, self._kinds)) if self._kinds else []

    def tells_patient(self, path: str, identity: Identity) -> bool:
        """Return whether the path of media that no row names may tell a patient: by an identifier, or by words of its own.

        Args:
            path: relative to the source.
            identity: what the header of its DICOM file says.
        """
        held = self.screen.holds(path, identity) or PathScreen([identity]).holds(path, identity)
        return held or not letter_words(path) <= self._known_words

    @cached_property
    def _known_words(self) -> set[str]:
        return {word for path in self._named for word in letter_words(path)}

    def _link(self, source: Path) -> str:
        """Link a file or DICOM folder below `out/media`; the name is a keyed digest of the path."""
        token = self._masker.pseudonyms.token(str(source))
        self._origins.add(token, source)
        target = f"media/{token}"
        if source.is_dir():
            files = sorted(file for file in source.rglob("*") if file.is_file())
            for number, file in enumerate(files):
                _link_file(file, self._job.out / target / f"{number:05d}{media_suffix(file.name)}")
            return target
        target += media_suffix(source.name)
        _link_file(source, self._job.out / target)
        return target

    @cached_property
    def _origins(self) -> Origins:
        return Origins(self._masker.pseudonyms.key_file)

    def _embedded(self, entry: Any, column: MediaColumn, row: str, identity: Identity) -> str | None:
        data = entry.get("bytes") if isinstance(entry, dict) else entry
        if data is None and isinstance(entry, dict) and isinstance(entry.get("path"), str):
            return self._path(entry["path"], column, row, identity)
        is_picture = column.kind == "image"
        path = export_bytes(self._job, data, "media") if isinstance(data, bytes) and is_picture else None
        if path is None:
            self._job.report.fault(f"{column.cell} is neither a path nor a readable picture", row)
        return path


def own_title(table: Path, screen: PathScreen) -> str:
    """Return the title of own data for reports and cards: with the name of the table's file, if it holds no identifier."""
    named = "" if screen.holds(table.name, Identity()) else f" {table.name}"
    return f"Your own data: the table{named} and its images or volumes"


def entries_of(cell: Any) -> list[Any]:
    """Return the entries of a cell: paths (several with ;), pictures, or a list of either."""
    if cell is None or cell == "":
        return []
    if isinstance(cell, str):
        return [part for part in (part.strip() for part in cell.split(";")) if part]
    return [entry for part in cell for entry in entries_of(part)] if isinstance(cell, list) else [cell]


def _names_in(cell: Any) -> list[str]:
    return [entry for entry in entries_of(cell) if isinstance(entry, str)]


def _brief(path: str) -> str:
    """Return a path as it stands, or only its beginning or size if it is long or holds the bytes of a picture."""
    text = shown(path, _MOST_SHOWN)
    return path if text == repr(path) else text


def _link_file(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)
