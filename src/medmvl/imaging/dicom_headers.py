"""The header of one DICOM file: is it a slice of a volume, where does it lie, where are its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from medmvl.imaging.dicom import floats, frame_count, looks_like_dicom, number, open_dicom
from medmvl.imaging.dicom_image import functional_group

_KEYWORDS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "AcquisitionNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "NumberOfFrames", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
]  # fmt: skip

_TAGS = [Tag(tag_for_keyword(keyword) or 0) for keyword in _KEYWORDS]
_POSITION, _INSTANCE = Tag("ImagePositionPatient"), Tag("SOPInstanceUID")
#: modalities of documents, which have no pixels whatever their class says
_TEXT = ("SR", "KO", "PR", "DOC", "REG", "RTSTRUCT", "RTPLAN", "ECG")
#: how far direction cosines may be from unit length and from a right angle: some writers keep two digits
_COSINES = 0.02
#: transfer syntaxes whose pixels lie in the file as they are in memory -> bytes before their length field
_PLAIN = {"1.2.840.10008.1.2": 4, "1.2.840.10008.1.2.1": 8}


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice: where it lies in the patient, and where its pixels lie on disk.

    Attributes:
        path: its file.
        frame: index in a multi-frame file, else None.
        uid: SOP instance UID with the frame.
        position: (x, y, z) mm of the first pixel, LPS+.
        orientation: direction cosines of a row and of a column, six numbers.
        spacing: (between rows, between columns) mm.
        slope, intercept: of this slice.
        raw: (offset, dtype) of uncompressed pixels in the file, None where a decoder is needed.
        acquisition: AcquisitionNumber, to tell scans apart that share a series.
        group: series UID, matrix and spacing: slices of one volume agree in them.
    """

    path: Path
    frame: int | None
    uid: str
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    slope: float
    intercept: float
    raw: tuple[int, str] | None
    acquisition: str
    group: tuple[object, ...]

    @property
    def normal(self) -> np.ndarray:
        """Unit vector along which slices of this orientation are ordered."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    def digest(self) -> str:
        """Hash of the whole file: two copies of one slice under two names are the same."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest() + str(self.frame)


@dataclass(frozen=True, eq=False)
class Header:
    """What one file says.

    Attributes:
        dataset: its attributes without pixels (of the first file, where many say the same).
        left_out: why it is no slice of a volume, or None.
        damaged: what is wrong with an image that is not whole, else "".
        slices: a Slice per frame; None for a frame that does not say where it lies.
    """

    dataset: Dataset
    left_out: str | None
    slices: tuple[Slice | None, ...]
    damaged: str = ""


class HeaderReader:
    """Reads headers; attributes that are byte for byte those of an earlier file are not decoded again.

    In a series all but position and UID are the same, and decoding is most of the time a header takes.
    """

    def __init__(self) -> None:
        self._known: dict[object, tuple[Header, int]] = {}

    def read(self, path: Path) -> Header | None:
        """Return the header of `path`, None if it is not a DICOM file.

        Raises:
            ImagingError: if it is a truncated one.
        """
        with path.open("rb") as handle:
            if not looks_like_dicom(handle.read(132)):
                return None
            handle.seek(0)
            dataset = open_dicom(handle, stop_before_pixels=True, specific_tags=_TAGS, label=path)
            start = handle.tell()
            head = handle.read(12)
        syntax = str(getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", ""))
        if not head and syntax != DeflatedExplicitVRLittleEndian and _is_image(dataset):
            return Header(dataset, "that end before their pixels", (), "is truncated: it ends before its pixels")
        same = tuple((tag, item.value) for tag, item in dataset.items() if tag not in (_POSITION, _INSTANCE))
        undecoded = all(isinstance(value, bytes | str | None) for _, value in same)
        signature = (syntax, same) if undecoded else None
        known = self._known.get(signature) if signature is not None else None
        if known is not None:
            return _like(known[0], dataset, path, _place_of_pixels(syntax, known[1], start, head))
        left_out = _not_a_slice(dataset)
        size = 0 if left_out else _plain_size(dataset)
        dtype = "<i2" if int(dataset.get("PixelRepresentation") or 0) else "<u2"
        offset = _place_of_pixels(syntax, size, start, head)
        slices = () if left_out else tuple(_slices_of(dataset, path, None if offset is None else (offset, dtype)))
        header = Header(dataset, left_out, slices, "" if left_out else _lacking_frames(dataset))
        if signature is not None and len(slices) == 1 and slices[0] is not None and slices[0].frame is None:
            self._known[signature] = (header, size)
        return header


def _like(known: Header, dataset: Dataset, path: Path, offset: int | None) -> Header:
    """The header of a file that differs from a known one in position and UID only."""
    position = floats(dataset.get(_POSITION).value if _POSITION in dataset else None, 3)
    template = known.slices[0]
    if position is None or template is None:
        return Header(dataset, None, (None,))
    raw = None if offset is None or template.raw is None else (offset, template.raw[1])
    uid = dataset[_INSTANCE].value if _INSTANCE in dataset else path.name
    place = (position[0], position[1], position[2])
    return Header(known.dataset, None, (replace(template, path=path, uid=f"{uid}#0", position=place, raw=raw),))


def _plain_size(dataset: Dataset) -> int:
    """Bytes of the pixels if they are plain 16-bit grey values of one frame, else 0."""
    plain = int(dataset.get("BitsAllocated") or 0) == 16 and frame_count(dataset) == 1
    return int(dataset.Rows) * int(dataset.Columns) * 2 if plain else 0


def _place_of_pixels(syntax: str, size: int, start: int, head: bytes) -> int | None:
    """Offset of uncompressed pixels in the file, None where a decoder is needed; `head` follows the last attribute."""
    before = _PLAIN.get(syntax)
    if not size or before is None or head[:4] != b"\xe0\x7f\x10\x00":
        return None
    length = int.from_bytes(head[before : before + 4], "little")
    return start + before + 4 if length >= size else None


def _not_a_slice(dataset: Dataset) -> str | None:
    """Why a file is no slice of a volume, or None."""
    image_type = [str(part).upper() for part in dataset.get("ImageType") or ()]
    if "LOCALIZER" in image_type:
        return "that are localizers"
    if not dataset.get("Rows") or not dataset.get("Columns"):
        return "without pixels (reports, dose sheets, directories ...)"
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        return "in colour"
    return None


def _lacking_frames(dataset: Dataset) -> str:
    """Say so if a file describes some of its frames and not all."""
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    frames = frame_count(dataset)
    return f"describes {described} of its {frames} frames" if 0 < described < frames else ""


def _is_image(dataset: Dataset) -> bool:
    """Say whether a file is an image by its class, or does not get as far as saying what it is."""
    if not len(dataset):  # it ends in its meta header
        return True
    if dataset.get("Modality") in _TEXT:
        return False
    said = getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID") or dataset.get("SOPClassUID")
    return said is None or "Image Storage" in UID(str(said)).name


def _directions(value: object) -> tuple[float, ...] | None:
    """The direction cosines of a row and of a column as unit vectors, None if they are not a right angle."""
    numbers = floats(value, 6)
    if numbers is None:
        return None
    row, column = np.asarray(numbers[:3]), np.asarray(numbers[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > _COSINES or abs(float(row @ column)) > _COSINES:
        return None
    return tuple(float(v) for v in (*row / lengths[0], *column / lengths[1]))


def _slices_of(dataset: Dataset, path: Path, raw: tuple[int, str] | None) -> Iterator[Slice | None]:
    """Yield a Slice per frame, None for one that does not say where it lies."""
    frames = frame_count(dataset)
    enhanced = frames > 1 or "PerFrameFunctionalGroupsSequence" in dataset
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ()) if frames > 1 else 1
    if described < frames:  # a film, or a number that is not true
        yield None
    for index in range(min(frames, described)):
        where, turned, measures, values = (
            (functional_group(dataset, index, name) or dataset) if enhanced else dataset
            for name in (
                "PlanePositionSequence",
                "PlaneOrientationSequence",
                "PixelMeasuresSequence",
                "PixelValueTransformationSequence",
            )
        )
        position = floats(where.get("ImagePositionPatient"), 3)
        orientation = _directions(turned.get("ImageOrientationPatient"))
        spacing = floats(measures.get("PixelSpacing"), 2)
        if position is None or orientation is None or spacing is None or min(spacing) <= 0:
            yield None
            continue
        if frames > 1 and where is dataset:  # one position for all frames: a film, not a stack
            yield None
            continue
        yield Slice(
            path=path,
            frame=index if enhanced else None,
            uid=f"{dataset.get('SOPInstanceUID', path.name)}#{index}",
            position=(position[0], position[1], position[2]),
            orientation=orientation,
            spacing=(spacing[0], spacing[1]),
            slope=number(values.get("RescaleSlope"), 1.0),
            intercept=number(values.get("RescaleIntercept"), 0.0),
            raw=None if enhanced else raw,
            acquisition=str(dataset.get("AcquisitionNumber", "")),
            group=(
                str(dataset.get("SeriesInstanceUID", "")),
                int(dataset.Rows),
                int(dataset.Columns),
                *(f"{mm:.4g}" for mm in spacing),  # decimal strings: the same spacing may be written to more digits
            ),
        )
