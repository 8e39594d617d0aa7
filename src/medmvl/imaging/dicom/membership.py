"""Which files beside the slices of a folder may be slices themselves: damaged ones, and captures of a screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydicom.dataset import Dataset

from medmvl.imaging.dicom.headers import sop_class

#: file name suffixes of DICOM files; a foreign file with one of them may be a damaged slice
_DICOM_SUFFIXES = (".dcm", ".dic", ".dicom", ".ima", ".img")
#: suffixes that downloads and compression put behind the name of a file
_ADDED_SUFFIXES = (
    ".part",
    ".partial",
    ".filepart",
    ".crdownload",
    ".download",
    ".tmp",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
    ".zip",
)
#: SOP classes of secondary captures: single-frame, and multi-frame of 1 bit, 8 bits, 16 bits and true color
_CAPTURES = ("1.2.840.10008.5.1.4.1.1.7", *(f"1.2.840.10008.5.1.4.1.1.7.{number}" for number in range(1, 5)))


def is_capture(dataset: Dataset) -> bool:
    """Return whether a file is a secondary capture or a screen shot, by its SOP class or its image type."""
    types = [str(part).upper().replace(" ", "").replace("_", "") for part in dataset.get("ImageType") or ()]
    return sop_class(dataset) in _CAPTURES or "SCREENSAVE" in types or "SCREENSHOT" in types


def damaged_slices(foreign: Iterable[Path], slices: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the files that are not DICOM but may be damaged slices, by size, content and name, and what is wrong.

    A file that was cut short or overwritten has lost its DICOM prefix, but still has the name of a slice.

    Args:
        foreign: files that are not DICOM.
        slices: files of the slices that were found.
    """
    known = set(slices)
    suffixes = {_suffix(file) for file in known}
    for file in foreign:
        if file.name == "DICOMDIR" or file.name.startswith("._"):  # metadata of macOS
            continue
        if file.suffix.lower() in _ADDED_SUFFIXES and _suffix(whole := file.with_suffix("")) in _DICOM_SUFFIXES:
            if whole not in known:
                yield file, "is a partial or compressed DICOM file by its name"
            continue
        suffix, content = _suffix(file), _first_bytes(file)
        named = suffix in (*_DICOM_SUFFIXES, *(suffixes - {""})) or (
            "" in suffixes and suffix == "" and _has_digit(file.name)
        )
        if named or (suffix == "" and "" in suffixes and not any(content)):
            yield (
                file,
                "is empty" if not content else "contains only zeros" if not any(content) else "is not a DICOM file",
            )


def _suffix(file: Path) -> str:
    """Return the suffix of a file in lower case, or "" if it is a number, as in names that are UIDs."""
    suffix = file.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def _has_digit(name: str) -> bool:
    return any(character.isdigit() for character in name)


def _first_bytes(file: Path) -> bytes:
    with file.open("rb") as handle:
        return handle.read(2**16)
