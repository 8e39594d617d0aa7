"""The headers of one DICOM study in a folder, grouped into series."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from medmvl.errors import WardError, counted
from medmvl.files import PathLike, existing_folder

#: Manufacturer of the objects that this package writes; they are never read as input
MANUFACTURER = "MedM-VL"
_PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True, eq=False)
class Instance:
    """One DICOM file.

    Attributes:
        header: all attributes before the pixels, text decoded.
        position: mm along the slice normal; None if the file does not state it.
    """

    path: Path
    header: Dataset
    position: float | None

    @property
    def uid(self) -> str:
        """SOP instance UID."""
        return str(self.header.SOPInstanceUID)

    @property
    def frames(self) -> int:
        """Number of frames, 1 for a single-frame object."""
        stated = text(self.header, "NumberOfFrames")
        return max(int(stated), 1) if stated.isdecimal() else 1


@dataclass(frozen=True, eq=False)
class Series:
    """The images of one series.

    Attributes:
        instances: ordered by position along the slice normal, then by instance number.
        plane: axial, coronal or sagittal; None if orientations are not stated.
        thickness: mm; None if not stated.
    """

    uid: str
    instances: tuple[Instance, ...]
    plane: str | None
    thickness: float | None

    @property
    def header(self) -> Dataset:
        """Header of the first instance."""
        return self.instances[0].header

    @property
    def modality(self) -> str:
        """Modality, empty if not stated or not a valid code, which could be anything."""
        stated = text(self.header, "Modality")
        return stated if _CODE.fullmatch(stated) else ""

    @property
    def slices(self) -> int:
        """Number of slices: frames of all instances."""
        return sum(instance.frames for instance in self.instances)

    @property
    def digest(self) -> str:
        """SHA-256 of the sorted SOP instance UIDs: which images the series consists of."""
        return hashlib.sha256("\n".join(sorted(instance.uid for instance in self.instances)).encode()).hexdigest()

    def describe(self) -> str:
        """Return modality, plane, size and thickness; no UID, description or patient data."""
        thick = "" if self.thickness is None else f", {self.thickness:g} mm thick"
        return (
            f"{self.modality or 'unknown modality'} {self.plane or ''}".rstrip()
            + f", {counted(self.slices, 'slice')}{thick}"
        )


@dataclass(frozen=True, eq=False)
class Study:
    """A study.

    Attributes:
        uid: study instance UID.
        series: series of images, not written by this package.
        numbers: series numbers in use.
        other: number of files that are DICOM but no images (reports, presentation states, ...).
    """

    uid: str
    series: tuple[Series, ...]
    numbers: frozenset[int]
    other: int


def read_study(folder: PathLike) -> Study:
    """Read the headers of all DICOM files below `folder`.

    Raises:
        WardError: if there is no DICOM file, a damaged one, or files of several studies.
    """
    root = existing_folder(folder, "folder with the study")
    groups: dict[str, dict[str, Instance]] = defaultdict(dict)
    studies: set[str] = set()
    numbers: set[int] = set()
    other = 0
    for path in sorted(file for file in root.rglob("*") if file.is_file()):
        header = read_header(path)
        if header is None:
            continue
        studies.add(text(header, "StudyInstanceUID"))
        if str(header.get("SeriesNumber") or "").lstrip("-").isdigit():
            numbers.add(int(header.SeriesNumber))
        if not _is_input_image(header):
            other += 1
            continue
        instance = Instance(path, header, _position(header))
        groups[text(header, "SeriesInstanceUID")][instance.uid] = instance
    if not studies:
        raise WardError(f"{root} holds no DICOM file. Give the folder of one study.")
    if len(studies) > 1:
        raise WardError(f"{root} holds files of {len(studies)} studies. Put each study into a folder of its own.")
    series = tuple(_series(uid, found.values()) for uid, found in sorted(groups.items()))
    return Study(studies.pop(), series, frozenset(numbers), other)


def read_header(path: Path) -> Dataset | None:
    """Return the attributes before the pixels, text decoded; None if the file is not DICOM (Part 10).

    Raises:
        WardError: if it is DICOM but damaged, or one of the UIDs is missing or invalid.
    """
    with path.open("rb") as handle:
        handle.seek(128)
        if handle.read(4) != b"DICM":
            return None
    try:
        header = dcmread(path, stop_before_pixels=True)
        header.decode()
        faulty = faulty_uids(header)
    except Exception as error:  # pydicom raises many types for damaged files; each means the same here
        raise WardError(f"{path} is a damaged DICOM file ({type(error).__name__}). Get it again.") from error
    if faulty:
        raise WardError(f"{path} lacks a valid {', '.join(faulty)}: at most 64 digits and dots. Get it again.")
    return header


REQUIRED_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
#: characters and length of a UID (PS3.5, section 9.1)
_UID = re.compile(r"[0-9.]{1,64}")
#: characters and length of a code string (PS3.5, section 6.2)
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")


def faulty_uids(header: Dataset) -> list[str]:
    """Return which of the required UIDs are missing or invalid."""
    return [keyword for keyword in REQUIRED_UIDS if not _UID.fullmatch(text(header, keyword))]


def text(header: Dataset, keyword: str) -> str:
    """Return an attribute as text without surrounding blanks; several values joined by a backslash."""
    value = header.get(keyword)
    if value is None:
        return ""
    return (
        "\\".join(map(str, value)) if isinstance(value, list | tuple) or _is_multiple(value) else str(value)
    ).strip()


def _is_multiple(value: Any) -> bool:
    return hasattr(value, "append") and not isinstance(value, str | bytes)


def _is_input_image(header: Dataset) -> bool:
    localizer = "LOCALIZER" in text(header, "ImageType").upper().split("\\")
    ours = text(header, "Manufacturer") == MANUFACTURER
    return bool(header.get("Rows") and header.get("Columns")) and not localizer and not ours


def _series(uid: str, found: Iterable[Instance]) -> Series:
    instances = sorted(found, key=_order)
    header = instances[0].header
    normal = _normal(header)
    plane = None if normal is None else _PLANES[int(np.abs(normal).argmax())]
    thickness = _numbers([grouped(header, "PixelMeasuresSequence", "SliceThickness")], 1)
    return Series(uid, tuple(instances), plane, None if thickness is None else float(thickness[0]))


def _order(instance: Instance) -> tuple[float, int, str]:
    number = str(instance.header.get("InstanceNumber") or "0")
    return instance.position or 0.0, int(number) if number.lstrip("-").isdigit() else 0, instance.uid


def grouped(header: Dataset, group: str, keyword: str) -> Any:
    """Return an attribute of the object itself or, in an enhanced one, of its functional group `group`; None if absent."""
    if header.get(keyword) is not None:
        return header.get(keyword)
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in list(header.get(name) or [])[:1]:
            for inner in list(item.get(group) or [])[:1]:
                if inner.get(keyword) is not None:
                    return inner.get(keyword)
    return None


def patient_side(header: Dataset) -> str:
    """Return the patient's side at the right edge of the stored pixels, L or R.

    Rows must run within 25 degrees of left-right, or PatientOrientation name one of the two alone; else "".
    """
    cosines = _numbers(header.get("ImageOrientationPatient"), 6)
    if cosines is not None:
        # the first three are the direction of a row to its right end, in LPS: plus x is towards the patient's left
        return ("L" if cosines[0] > 0 else "R") if abs(cosines[0]) > 0.9 * np.linalg.norm(cosines[:3]) else ""
    stated = header.get("PatientOrientation")
    row = "" if stated is None or isinstance(stated, str) or len(stated) != 2 else str(stated[0])
    return row if row in ("L", "R") else ""


def _normal(header: Dataset) -> np.ndarray | None:
    """Unit vector (3,) perpendicular to the slices, LPS; None if the orientation is not stated."""
    cosines = _numbers(grouped(header, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    return None if cosines is None else np.cross(cosines[:3], cosines[3:])


def _position(header: Dataset) -> float | None:
    normal = _normal(header)
    place = _numbers(grouped(header, "PlanePositionSequence", "ImagePositionPatient"), 3)
    return None if normal is None or place is None else float(np.dot(normal, place))


def _numbers(values: Any, count: int) -> np.ndarray | None:
    """Return `count` finite numbers as (count,); None if an attribute holds something else, such as words."""
    try:
        numbers = np.array([float(value) for value in values], dtype=float)
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None
