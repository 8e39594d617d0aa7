"""What every DICOM reader here needs: open a file politely, decode its pixels, say why when it cannot be done."""

from __future__ import annotations

import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from medmvl.errors import ImagingError
from medmvl.imaging.limits import check_bytes

#: what pydicom raises, sooner or later, for attributes that are not what they should be
_MALFORMED = (
    ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, NotImplementedError, struct.error,
    BytesLengthException, zlib.error,
)  # fmt: skip
#: how far into a file its meta group is looked for
_META_BYTES = 2048
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def looks_like_dicom(head: bytes) -> bool:
    """Say whether the first 132 or more bytes of a file are DICOM: with the preamble, or (older files) without.

    Without a preamble the data set begins with a group 0002 or 0008 element in little or big endian.
    """
    if head[128:132] == b"DICM":
        return True
    for order in ("little", "big"):
        group, element = int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)
        # Group 0002 or 0008 with a low element, then either a VR in capitals or a small length.
        if group in (2, 8) and element <= 0x20:
            return head[4:6].isupper() or int.from_bytes(head[4:8], order) <= 64
    return False


def open_dicom(file: Path | BinaryIO, *, label: Path | None = None, **options: Any) -> Dataset:
    """Read a DICOM file's data set.

    Args:
        file: path or open file.
        label: the path for messages, where `file` is open already.
        options: go to pydicom.dcmread.

    Raises:
        ImagingError: if it is no DICOM file, or truncated.
    """
    try:
        with understanding(label or Path(str(file))):
            _check_deflated(label or Path(str(file)))
            return pydicom.dcmread(file, force=True, **options)
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise ImagingError(f"{label or file} is not a whole DICOM file: {brief(error)}.") from error


def _check_deflated(path: Path) -> None:
    """Inflate a file of the deflated transfer syntax without keeping anything, before pydicom does so at one go.

    Raises:
        ImagingError: if its data set is larger than the limit.
    """
    with path.open("rb") as handle:
        head = handle.read(_META_BYTES)
        if DeflatedExplicitVRLittleEndian.encode() not in head or head[128:132] != b"DICM":
            return
        # The group length element comes first in the meta group: (0002,0000) UL 4.
        handle.seek(128 + 4 + 12 + int.from_bytes(head[140:144], "little"))
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while block := inflater.unconsumed_tail or handle.read(2**16):
            size += len(inflater.decompress(block, 2**20))
            check_bytes(size, path)
            if inflater.eof:
                return


@contextmanager
def understanding(path: Path) -> Iterator[None]:
    """Turn what pydicom raises for malformed attributes (a letter in a number ...) into an ImagingError.

    pydicom's warnings and log lines are held back inside: they quote attribute values, and names may be among them.
    """
    logger, was = logging.getLogger("pydicom"), logging.getLogger("pydicom").disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _MALFORMED as error:
        reason = re.sub(r"'[^']*'", "'...'", brief(error))  # the value of an attribute: names may be among them
        raise ImagingError(f"{path}: a DICOM attribute cannot be understood: {reason}.") from error
    finally:
        logger.disabled = was


def decode(dataset: Dataset, path: Path, index: int | None, max_bytes: int | None) -> np.ndarray:
    """Return the stored pixels of one frame (or of all, with index None); YBR is converted to RGB.

    Returns:
        (rows, columns), (rows, columns, 3), or with a leading axis of frames.

    Raises:
        ImagingError: in one sentence, for anything that a decoder can stumble over.
    """
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        kind = str(dataset.get("Modality", "")) or "unknown modality"
        raise ImagingError(f"{path} is a DICOM file without pixels ({kind}), or truncated.")
    for keyword in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation"):
        if dataset.get(keyword) in (None, ""):
            raise ImagingError(f"{path} has pixels but no {keyword}: they cannot be decoded.")
    if not _transfer_syntax_known(dataset):
        _assume_transfer_syntax(dataset)
    frames = 1 if index is not None else frame_count(dataset)
    size = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1) or 1) * frames
    check_bytes(size * max(int(dataset.BitsAllocated) // 8, 1), path, max_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = pixel_array(dataset, index=index)
    except Exception as error:  # decoders of four libraries raise what they like; every one is the file's fault
        raise ImagingError(f"{path}: its pixels cannot be decoded: {_why(error, dataset)}.") from error
    return pixels if pixels.dtype.isnative else pixels.astype(pixels.dtype.newbyteorder("="))


def frame_count(dataset: Dataset) -> int:
    """Return NumberOfFrames, 1 where it is absent or empty."""
    try:
        return max(int(dataset.get("NumberOfFrames") or 1), 1)
    except (TypeError, ValueError):
        return 1


def brief(error: BaseException) -> str:
    """Return the first sentence of an error, on one line and at most 200 characters long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0].rstrip(".")[:200]


def floats(value: Any, count: int) -> tuple[float, ...] | None:
    """Return a multi-valued attribute as finite floats, or None if it is absent, malformed or of another length."""
    if value is None or isinstance(value, str | bytes | float | int):
        return None
    try:
        numbers = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(np.isfinite(numbers)) else None


def number(value: Any, default: float) -> float:
    """Return an attribute as a float, `default` if it is absent or empty."""
    try:
        return float(value) if value not in (None, "") else default
    except (TypeError, ValueError):
        return default


def _transfer_syntax_known(dataset: Dataset) -> bool:
    return bool(getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None))


def _assume_transfer_syntax(dataset: Dataset) -> None:
    """Files without a meta header do not name their transfer syntax; the way they parsed tells it."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    implicit, little = dataset.original_encoding
    if not little:
        uid = pydicom.uid.ExplicitVRBigEndian
    else:
        uid = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = uid


def _why(error: Exception, dataset: Dataset) -> str:
    name = _transfer_syntax_name(dataset)
    if "plugins" not in str(error):
        return f"{name}, {brief(error)}"
    reason = brief(Exception(str(error).split("gdcm:", 1)[-1]))
    return (
        f"none of the installed decoders reads this {name} data (gdcm: {reason}); "
        "convert it to an uncompressed file, e.g. with gdcmconv --raw"
    )


def _transfer_syntax_name(dataset: Dataset) -> str:
    return UID(str(dataset.file_meta.TransferSyntaxUID)).name
