"""Headers of DICOM files: whether a file is a slice of a volume, its position, and the location of its pixels."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from medmvl.errors import ImagingError
from medmvl.imaging.decoder import DECODER, DecoderError
from medmvl.imaging.dicom.dataset import (
    MalformedError,
    decimal,
    floats,
    frame_count,
    functional_group,
    looks_like_dicom,
    open_dicom,
)
from medmvl.imaging.dicom.known_values import known_modality, known_photometric, known_uid
from medmvl.imaging.dicom.values import SliceValues, padding_of, pixel_format, rescale_of

_KEYWORDS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "AcquisitionNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "NumberOfFrames", "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence", "FrameOfReferenceUID",
]  # fmt: skip

_TAGS = [Tag(tag_for_keyword(keyword) or 0) for keyword in _KEYWORDS]
_POSITION, _INSTANCE = Tag("ImagePositionPatient"), Tag("SOPInstanceUID")
#: modalities of documents, which have no pixels even if their SOP class says otherwise
_TEXT = ("SR", "KO", "PR", "DOC", "REG", "RTSTRUCT", "RTPLAN", "ECG")
#: SOP classes whose pixels are not a scan, and what they are
_NOT_SCANS = {
    "1.2.840.10008.1.3.10": "that are directories (DICOMDIR)",
    "1.2.840.10008.5.1.4.1.1.66.4": "that are segmentations",
    "1.2.840.10008.5.1.4.1.1.66.7": "that are segmentations",
    "1.2.840.10008.5.1.4.1.1.66.8": "that are segmentations",
    "1.2.840.10008.5.1.4.1.1.30": "that are parametric maps",
    "1.2.840.10008.5.1.4.1.1.481.2": "that are dose distributions",
    "1.2.840.10008.5.1.4.1.1.67": "that are real world value mappings",
}
#: modalities whose pixels are not a scan, for files without a SOP class
_NOT_SCAN_MODALITIES = {"SEG": "that are segmentations", "RTDOSE": "that are dose distributions"}
#: why files without a matrix are left out
_WITHOUT_PIXELS = "without pixels (reports, dose sheets, directories ...)"
#: how far direction cosines may be from unit length and from a right angle: some writers keep two digits
_COSINES = 0.02
#: transfer syntaxes whose pixels are stored in the file as in memory -> bytes before their length field
_PLAIN = {"1.2.840.10008.1.2": 4, "1.2.840.10008.1.2.1": 8}


@dataclass(frozen=True, eq=False)
class Slice:
    """Position of one slice in the patient, and location of its pixels in the file.

    Attributes:
        path: its file.
        frame: index in a multi-frame file, else None.
        uid: SOP instance UID with the frame.
        position: (x, y, z) mm of the first pixel, LPS+.
        orientation: direction cosines of a row and of a column, six numbers.
        spacing: (between rows, between columns) mm; None if the file states none that is usable.
        values: how its stored values are to be read.
        raw: (offset, dtype) of uncompressed 16-bit pixels in the file; None: they must be decoded.
        acquisition: AcquisitionNumber, which separates scans that share a series.
        reference: FrameOfReferenceUID, within which positions can be compared; "" if it is not stated.
        group: series UID, matrix size and spacing, in which the slices of one volume agree.
    """

    path: Path
    frame: int | None
    uid: str
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    spacing: tuple[float, float] | None
    values: SliceValues
    raw: tuple[int, str] | None
    acquisition: str
    reference: str
    group: tuple[object, ...]

    @property
    def normal(self) -> np.ndarray:
        """Unit vector of shape (3,) along which slices of this orientation are ordered."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    def digest(self) -> str:
        """Return a hash of the whole file and the frame; equal for two copies of one slice under different names."""
        with self.path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest() + str(self.frame)


@dataclass(frozen=True, eq=False)
class Header:
    """Parsed header of one file.

    Attributes:
        dataset: its attributes without pixels (those of the first file, if many have equal ones).
        left_out: why it is not a slice of a volume, or None.
        damaged: why an image that may belong to a volume cannot be used, else "".
        slices: a Slice per frame; None for a frame without position or orientation.
    """

    dataset: Dataset
    left_out: str | None
    slices: tuple[Slice | None, ...]
    damaged: str = ""


class HeaderReader:
    """Reader of headers that does not decode attributes again if they equal an earlier file's byte for byte.

    In a series everything but position and UID is the same, and decoding takes most of the time of reading a header.

    Args:
        scans_only: leave out segmentations, parametric maps and dose distributions. A single file that is named
            explicitly is read whatever its class is.
    """

    def __init__(self, scans_only: bool = True) -> None:
        self._scans_only = scans_only
        self._known: dict[object, tuple[Header, int]] = {}

    def read(self, path: Path) -> Header | None:
        """Return the header of `path`, or None if it is not a DICOM file.

        Raises:
            ImagingError: if it is a truncated DICOM file.
        """
        try:
            with path.open("rb") as handle:
                if not looks_like_dicom(handle.read(132)):
                    return None
                handle.seek(0)
                dataset = open_dicom(handle, stop_before_pixels=True, specific_tags=_TAGS, label=path)
                start = handle.tell()
                head = handle.read(12)
        except OSError as error:
            raise ImagingError(f"{path} cannot be read: {error.strerror}.") from None
        syntax = str(getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", ""))
        if not head and syntax != DeflatedExplicitVRLittleEndian and _is_image(dataset):
            return Header(dataset, "that end before their pixels", (), "is truncated: it ends before its pixels")
        same = tuple((tag, item.value) for tag, item in dataset.items() if tag not in (_POSITION, _INSTANCE))
        undecoded = all(isinstance(value, bytes | str | None) for _, value in same)
        signature = (syntax, same) if undecoded else None
        known = self._known.get(signature) if signature is not None else None
        if known is not None:
            return _like(known[0], dataset, path, _pixel_offset(syntax, known[1], start, head))
        header, size = self._described(dataset, path, syntax, start, head)
        if signature is not None and len(header.slices) == 1 and header.slices[0] is not None:
            self._known[signature] = (header, size)
        return header

    def _described(self, dataset: Dataset, path: Path, syntax: str, start: int, head: bytes) -> tuple[Header, int]:
        """Return the header of a file, and the size of its pixels if they are plain."""
        left_out = _not_a_slice(dataset, self._scans_only)
        if left_out:
            lacking = left_out == _WITHOUT_PIXELS and sop_class(dataset) and _is_image(dataset)
            return Header(dataset, left_out, (), "cannot be used: it has no Rows or Columns" if lacking else ""), 0
        if syntax and syntax != RLELossless and UID(syntax).is_encapsulated:
            with contextlib.suppress(DecoderError):  # raised again when a frame is decoded
                DECODER.start()  # it is ready when the headers are read
        try:
            size = _plain_size(dataset)
            offset = _pixel_offset(syntax, size, start, head)
            dtype = "<i2" if size and pixel_format(dataset).signed else "<u2"
            slices = tuple(_slices_of(dataset, path, None if offset is None else (offset, dtype)))
            return Header(dataset, None, slices, _lacking_frames(dataset)), size
        except MalformedError as error:
            return Header(dataset, "that are malformed", (), f"cannot be used: {error}"), 0


def _like(known: Header, dataset: Dataset, path: Path, offset: int | None) -> Header:
    """Return the header of a file that differs from a known one in position and UID only."""
    position = floats(dataset.get(_POSITION).value if _POSITION in dataset else None, 3)
    template = known.slices[0]
    if position is None or template is None:
        return Header(dataset, None, (None,))
    raw = None if offset is None or template.raw is None else (offset, template.raw[1])
    uid = dataset[_INSTANCE].value if _INSTANCE in dataset else path.name
    at = (position[0], position[1], position[2])
    return Header(known.dataset, None, (replace(template, path=path, uid=f"{uid}#0", position=at, raw=raw),))


def _plain_size(dataset: Dataset) -> int:
    """Return the size in bytes of the pixels if they are 16-bit gray values of one frame, else 0."""
    plain = decimal(dataset, "BitsAllocated") == 16 and frame_count(dataset) == 1
    return int(dataset.Rows) * int(dataset.Columns) * 2 if plain else 0


def _pixel_offset(syntax: str, size: int, start: int, head: bytes) -> int | None:
    """Return the offset of uncompressed pixels in the file, or None if they must be decoded.

    Args:
        head: the bytes that follow the last attribute.
    """
    before = _PLAIN.get(syntax)
    if not size or before is None or head[:4] != b"\xe0\x7f\x10\x00":
        return None
    length = int.from_bytes(head[before : before + 4], "little")
    return start + before + 4 if 0 <= length - size <= 1 else None  # a longer one is judged when it is decoded


def _not_a_slice(dataset: Dataset, scans_only: bool) -> str | None:
    """Return why a file is not a slice of a volume, or None."""
    stated = known_uid(dataset.get("SOPClassUID"))  # a rewritten meta group may state another class
    reason = (
        _NOT_SCANS.get(sop_class(dataset))
        or _NOT_SCANS.get(stated)
        or _NOT_SCAN_MODALITIES.get(known_modality(dataset))
    )
    if reason and scans_only:
        return reason
    image_type = [str(part).upper() for part in dataset.get("ImageType") or ()]
    if "LOCALIZER" in image_type:
        return "that are localizers"
    if not dataset.get("Rows") or not dataset.get("Columns"):
        return _WITHOUT_PIXELS
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or known_photometric(dataset) == "PALETTE COLOR":
        return "in color"
    return None


def sop_class(dataset: Dataset) -> str:
    """Return the SOP class UID of a data set from its meta group or its attributes, or ""."""
    meta = getattr(dataset, "file_meta", None) or {}
    return known_uid(meta.get("MediaStorageSOPClassUID")) or known_uid(dataset.get("SOPClassUID"))


def _lacking_frames(dataset: Dataset) -> str:
    """Return a description if a file describes some of its frames but not all, else ""."""
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    frames = frame_count(dataset)
    return f"describes {described} of its {frames} frames" if 0 < described < frames else ""


def _is_image(dataset: Dataset) -> bool:
    """Return whether a file is an image by its SOP class, or ends before it states its class."""
    stated = sop_class(dataset)
    if stated in _NOT_SCANS:
        return False
    if not len(dataset):  # it ends in its meta header
        return True
    if dataset.get("Modality") in _TEXT:
        return False
    return not stated or "Image Storage" in UID(stated).name


def _directions(value: object) -> tuple[float, ...] | None:
    """Return the direction cosines of a row and of a column as unit vectors, or None if they are not perpendicular."""
    numbers = floats(value, 6)
    if numbers is None:
        return None
    row, column = np.asarray(numbers[:3]), np.asarray(numbers[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > _COSINES or abs(float(row @ column)) > _COSINES:
        return None
    return tuple(float(v) for v in (*row / lengths[0], *column / lengths[1]))


def _slices_of(dataset: Dataset, path: Path, raw: tuple[int, str] | None) -> Iterator[Slice | None]:
    """Yield a Slice per frame, or None for a frame without position or orientation."""
    frames = frame_count(dataset)
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ()) if frames > 1 else 1
    if described < frames:  # a cine loop, or a wrong number of frames
        yield None
    for index in range(min(frames, described)):
        yield _slice_of(dataset, path, index, frames, raw)


def _slice_of(dataset: Dataset, path: Path, index: int, frames: int, raw: tuple[int, str] | None) -> Slice | None:
    """Return the Slice of one frame, or None if it has no position or orientation."""
    enhanced = frames > 1 or "PerFrameFunctionalGroupsSequence" in dataset
    at, turned, measures = (
        (functional_group(dataset, index, name) or dataset) if enhanced else dataset
        for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    )
    position = floats(at.get("ImagePositionPatient"), 3)
    orientation = _directions(turned.get("ImageOrientationPatient"))
    spacing = floats(measures.get("PixelSpacing"), 2)
    if position is None or orientation is None:
        return None
    if spacing is not None and min(spacing) <= 0:
        spacing = None
    if frames > 1 and at is dataset:  # one position for all frames: a cine loop, not a stack
        return None
    return Slice(
        path=path,
        frame=index if enhanced else None,
        uid=f"{dataset.get('SOPInstanceUID', path.name)}#{index}",
        position=(position[0], position[1], position[2]),
        orientation=orientation,
        spacing=None if spacing is None else (spacing[0], spacing[1]),
        values=_values_of(dataset, index),
        raw=None if enhanced else raw,
        acquisition=_acquisition(dataset),
        reference=known_uid(dataset.get("FrameOfReferenceUID")),
        group=(
            known_uid(dataset.get("SeriesInstanceUID")),
            int(dataset.Rows),
            int(dataset.Columns),
            *(f"{mm:.4g}" for mm in spacing or ()),  # decimal strings: the same spacing may be written with more digits
        ),
    )


def _acquisition(dataset: Dataset) -> str:
    """Return AcquisitionNumber as digits, or "" if it is absent or malformed."""
    try:
        number = decimal(dataset, "AcquisitionNumber")
    except MalformedError:
        return ""
    return "" if number is None else f"{number:.0f}"


def _values_of(dataset: Dataset, index: int) -> SliceValues:
    """Return how the stored values of a frame are to be read.

    Raises:
        MalformedError: if its rescale, pixel format or padding is malformed.
    """
    bits = pixel_format(dataset) if dataset.get("BitsStored") not in (None, "") else None
    if bits is None and decimal(dataset, "BitsAllocated") in (8, 16):
        raise MalformedError("it has no BitsStored")
    return SliceValues(
        modality=known_modality(dataset),
        photometric=known_photometric(dataset) or "",
        bits=bits,
        rescale=rescale_of(dataset, index),
        padding=None if bits is None else padding_of(dataset, bits),
    )
