"""Files and folders of an export: where a missing path may be meant, and which images and series no row names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath

from medmvl.imaging.dicom.dataset import looks_like_dicom

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2")
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".npy", ".npz", ".nrrd", ".nhdr", ".mha", ".mhd")
#: Files with the pixels of a header next to them (.nhdr, .mhd).
PIXEL_SUFFIXES = (".raw", ".zraw")
#: Suffixes that say the format of a file.
MEDIA_SUFFIXES = (*VOLUME_SUFFIXES, *DICOM_SUFFIXES, *PIXEL_SUFFIXES, *PICTURE_SUFFIXES)
#: Files of an export that are no DICOM files although DICOM files often have no suffix.
_OTHERS = (
    ".csv",
    ".tsv",
    ".txt",
    ".xlsx",
    ".xls",
    ".json",
    ".jsonl",
    ".parquet",
    ".pdf",
    ".xml",
    ".html",
    ".md",
    ".gz",
    ".zip",
)
#: Files and folders up to which a source is searched unasked, so that a conversion does not read a whole archive for a note.
MOST_ENTRIES = 300_000
#: Files of a folder that are tried until one is a DICOM file, and files that make a folder a series.
_TRIED, _SERIES = 5, 2


def media_suffix(name: str) -> str:
    """Return the suffix of a file if it says its format, else ""; another could be a part of a name."""
    lowered = name.lower()
    return next((suffix for suffix in MEDIA_SUFFIXES if lowered.endswith(suffix)), "")


class SourceTree:
    """The files and folders below the source of a conversion, without what a conversion wrote there.

    Args:
        root: the source.
        out: the output of this conversion, which may be in the source.
        most: files and folders up to which the source is searched; None for any number.
    """

    def __init__(self, root: Path, out: Path, most: int | None) -> None:
        self._root, self._out, self._most = root, out, most

    @property
    def is_too_large(self) -> bool:
        """Whether the source has more than `most` files and folders, so that it is not searched."""
        return self._folders is None

    @property
    def folders(self) -> dict[str, list[str]]:
        """Folder, relative to the root ("" for itself) -> its files; {} for a source that is too large."""
        return self._folders or {}

    @cached_property
    def _folders(self) -> dict[str, list[str]] | None:
        found: dict[str, list[str]] = {}
        count, seen = 0, {os.path.realpath(self._out)}
        for place, names, files in os.walk(self._root, followlinks=True):
            real = os.path.realpath(place)
            if real in seen or ("report.json" in files and place != str(self._root)):
                names.clear()
                continue
            seen.add(real)
            names[:] = sorted(name for name in names if not name.startswith("."))
            relative = _relative(Path(place).relative_to(self._root))
            found[relative] = sorted(name for name in files if not name.startswith("."))
            count += len(names) + len(files)
            if self._most is not None and count > self._most:
                return None
        return found

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Name of a file or folder, as `_same` writes it -> the paths that end with it."""
        found: dict[str, list[str]] = {}
        for folder, files in self.folders.items():
            for path in (folder, *(_join(folder, file) for file in files)):
                found.setdefault(_same(PurePosixPath(path).name), []).append(path)
        return found

    def closest(self, path: str, taken: Collection[str]) -> str | None:
        """Return the path below the root that a missing one may be meant for; None if there is none, or more than one.

        It is the same in another letter case or Unicode form, or its end is, in another folder.

        Args:
            path: relative to the root, or absolute on another machine.
            taken: paths that are in use; another patient's scan is no answer.
        """
        parts = [_same(part) for part in PurePosixPath(path.replace("\\", "/")).parts if part != ".."]
        lengths: dict[int, list[str]] = {}
        for candidate in self._by_name.get(parts[-1], []) if parts else []:
            lengths.setdefault(_equal_end(parts, [_same(part) for part in PurePosixPath(candidate).parts]), []).append(
                candidate
            )
        best = lengths[max(lengths)] if lengths else []
        return best[0] if len(best) == 1 and best[0] not in taken else None

    def unnamed(self, named: Collection[str], kinds: Collection[str]) -> Iterator[tuple[str, str]]:
        """Yield (what, path) of the images and volumes that are not named: "DICOM folder", "DICOM file", "picture" or "volume file".

        Args:
            named: the paths in use, relative to the root; a folder covers what is below it.
            kinds: what is in use: "image", "image3d" or both. Others are not looked for.
        """
        above = {_relative(parent) for path in named for parent in PurePosixPath(path).parents}
        for folder, files in self.folders.items():
            if _is_covered(folder, named):
                continue
            dicom = self._dicom_files(folder, files)
            if len(dicom) >= _SERIES and folder not in above:
                if "image3d" in kinds:
                    yield "DICOM folder", folder
            elif "image" in kinds:
                yield from (("DICOM file", path) for file in dicom if (path := _join(folder, file)) not in named)
            for file in files:
                path, what = _join(folder, file), _kind_of(file)
                if what is not None and what[0] in kinds and path not in named:
                    yield what[1], path

    def _dicom_files(self, folder: str, files: list[str]) -> list[str]:
        """Return the DICOM files of a folder: by their suffix, or where one of the first without a known suffix is one."""
        lowered = {file: file.lower() for file in files if file.upper() != "DICOMDIR"}
        known = [file for file, name in lowered.items() if name.endswith(DICOM_SUFFIXES)]
        unknown = [file for file, name in lowered.items() if not name.endswith((*MEDIA_SUFFIXES, *_OTHERS))]
        return known + (unknown if any(is_dicom(self._root / folder / file) for file in unknown[:_TRIED]) else [])


def is_dicom(file: Path) -> bool:
    """Return whether the first bytes of a file are those of DICOM; False if it cannot be read."""
    try:
        with file.open("rb") as handle:
            return looks_like_dicom(handle.read(132))
    except OSError:
        return False


def holds_dicom(folder: Path) -> bool:
    """Return whether one of the first files of a folder itself is a DICOM file."""
    try:
        files = sorted(entry for entry in folder.iterdir() if entry.is_file())[:_TRIED]
    except OSError:
        return False
    return any(is_dicom(file) for file in files)


def _kind_of(file: str) -> tuple[str, str] | None:
    """Return the kind of a file that is no DICOM file, and the word for it; None for another file."""
    name = file.lower()
    if name.endswith(PICTURE_SUFFIXES):
        return "image", "picture"
    return ("image3d", "volume file") if name.endswith(VOLUME_SUFFIXES) else None


def _is_covered(folder: str, named: Collection[str]) -> bool:
    """Return whether a folder, or one that it is in, is named."""
    return folder in named or any(_relative(parent) in named for parent in PurePosixPath(folder).parents)


def _equal_end(first: list[str], second: list[str]) -> int:
    """Return how many parts at the end of two paths are equal."""
    count = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        count += 1
    return count


def _same(part: str) -> str:
    """Return a part of a path without letter case, and with accents in one Unicode form."""
    return unicodedata.normalize("NFC", part).casefold()


def _relative(path: PurePath) -> str:
    """Return a relative path with slashes, "" for the root itself."""
    return "" if path == type(path)() else path.as_posix()


def _join(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file
