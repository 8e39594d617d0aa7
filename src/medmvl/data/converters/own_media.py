"""Images and volumes of own tables: paths, lists of paths, or embedded pictures, under names without identifiers."""

from __future__ import annotations

import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from medmvl.data.converters.converter import Job
from medmvl.data.converters.media import export_bytes, usable_source
from medmvl.data.converters.own_identity import Identity, Masker, PathScreen
from medmvl.data.origins import Origins
from medmvl.files import atomic

_SUFFIXES = (
    *(".nii.gz", ".nii", ".npy", ".npz", ".dcm", ".dicom", ".ima", ".nrrd", ".nhdr", ".mha", ".mhd", ".raw", ".zraw"),
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2"),
)


class MediaWriter:
    """Finds the files of table cells, and exports them if their names must not appear in records.

    Files are used where they are if no cell holds a picture and no path holds the identifier of a patient. Otherwise all are
    linked (or copied, where the file system cannot link) below `out/media` under neutral names.

    Args:
        job: the conversion.
        root: folder that the paths are relative to.
        rows: the cells with images and volumes of each row, and the identity of its patient.
        masker: gives the keyed names of exported files.
    """

    def __init__(self, job: Job, root: Path, rows: list[tuple[list[Any], Identity]], masker: Masker) -> None:
        self._job, self._root, self._masker = job, root, masker
        screen = PathScreen(identity for _, identity in rows)
        place = str(job.source.resolve())  # stands in the report as the root of the paths
        cells = [(entry, identity) for cells, identity in rows for cell in cells for entry in entries_of(cell)]
        reasons = {
            "pictures were embedded in the table": any(not isinstance(entry, str) for entry, _ in cells),
            "paths named patients": any(screen.holds(place, identity) for _, identity in cells)
            or any(isinstance(entry, str) and screen.holds(entry, identity) for entry, identity in cells),
        }
        self.exports = any(reasons.values())
        if self.exports:
            job.report.exported = True
            why = " and ".join(reason for reason, holds in reasons.items() if holds)
            job.report.note(
                f"Files are in media/ of the output, for {why}. Linked files are the originals: their headers keep what identifies a "
                "patient. `medmvl data deidentify` makes copies without it."
            )

    def paths(self, cell: Any, kind: str, row: str) -> list[str] | None:
        """Return the paths of a cell for the record; None after counting a faulty entry, which is named by its row."""
        found = []
        for entry in entries_of(cell):
            path = self._path(entry, kind, row) if isinstance(entry, str) else self._embedded(entry, kind, row)
            if path is None:
                return None
            found.append(path)
        return found

    def _path(self, name: str, kind: str, row: str) -> str | None:
        source = self._root / name
        if "\\" in name and not source.exists():  # a table of Windows
            source = self._root / name.replace("\\", "/")
        fault = usable_source(source, self._job.source, kind)
        if fault:
            # Without patients' names in paths the path helps to find the file; with them only the row may be named.
            self._job.report.fault(
                fault, row if self.exports else source.name if "empty" in fault else "/".join(source.parts[-2:])
            )
            return None
        return self._link(source, kind) if self.exports else os.path.relpath(source, self._job.source)

    def _link(self, source: Path, kind: str) -> str:
        """Link a file or DICOM folder below `out/media`; the name is a keyed digest of the path."""
        token = self._masker.pseudonyms.token(str(source))
        self._origins.add(token, source)
        target = f"media/{token}"
        if source.is_dir():
            files = sorted(file for file in source.rglob("*") if file.is_file())
            for number, file in enumerate(files):
                _link_file(file, self._job.out / target / f"{number:05d}{_suffix(file)}")
            return target
        target += _suffix(source)
        _link_file(source, self._job.out / target)
        return target

    @cached_property
    def _origins(self) -> Origins:
        return Origins(self._masker.pseudonyms.key_file)

    def _embedded(self, entry: Any, kind: str, row: str) -> str | None:
        data = entry.get("bytes") if isinstance(entry, dict) else entry
        if data is None and isinstance(entry, dict) and isinstance(entry.get("path"), str):
            return self._path(entry["path"], kind, row)
        path = export_bytes(self._job, data, "media") if isinstance(data, bytes) and kind == "image" else None
        if path is None:
            self._job.report.fault(f"{kind} is neither a path nor a readable picture", row)
        return path


def entries_of(cell: Any) -> list[Any]:
    """Return the entries of a cell: paths (several with ;), pictures, or a list of either."""
    if cell is None or cell == "":
        return []
    if isinstance(cell, str):
        return [part for part in (part.strip() for part in cell.split(";")) if part]
    return [entry for part in cell for entry in entries_of(part)] if isinstance(cell, list) else [cell]


def _suffix(file: Path) -> str:
    """Return the suffix of a file if it says its format; another could be a part of a name."""
    name = file.name.lower()
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")


def _link_file(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)
