"""Opening of DICOM data sets, access to their attributes, and translation of pydicom's errors."""

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
from pydicom.multival import MultiValue
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medmvl.errors import ImagingError
from medmvl.imaging.limits import check_bytes

#: exceptions that pydicom raises for malformed attributes
MALFORMED = (
    ValueError, TypeError, KeyError, OSError, AttributeError, IndexError, OverflowError, NotImplementedError, struct.error,
    BytesLengthException, zlib.error, RuntimeError, EOFError, MemoryError,
)  # fmt: skip
#: number of bytes at the start of a file in which the meta group is searched
_META_BYTES = 2048
#: wordings of pydicom, its plugins and numpy, and what messages say instead; their own texts may quote attribute values
_REASONS = (
    (r"RLE", "its RLE data are damaged"),
    (r"less than expected", "the pixel data are less than expected, as if the file were truncated"),
    (r"plugins", "none of the installed decoders reads these data"),
    (r"end of (file|item|sequence)|EOF|unexpected end|ended", "it ends early"),
    (r"invalid literal|could not convert|not a valid|cannot be converted|DS|decimal", "an attribute is not a number"),
    (r"group length|tag|VR|value representation", "an attribute is malformed"),
    (r"transfer syntax", "its transfer syntax is not supported"),
    (r"memory", "it needs too much memory"),
    (r"compress|inflat|deflate|distance|stored block", "its compressed data set is damaged"),
)


class MalformedError(ValueError):
    """An attribute does not have the form that the standard prescribes. The message contains no attribute values."""


def looks_like_dicom(head: bytes) -> bool:
    """Return whether the first 132 or more bytes of a file are DICOM, with or (in older files) without preamble.

    Without a preamble the data set begins with an element of group 0002 or 0008 in little or big endian.
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
        label: the path for messages if `file` is an open file.
        options: passed to pydicom.dcmread.

    Raises:
        ImagingError: if the file is not DICOM, or is truncated.
    """
    path = label or Path(str(file))
    try:
        with _silent_pydicom():
            _check_deflated(path)
            return pydicom.dcmread(file, force=True, **options)
    except (InvalidDicomError, OSError, *MALFORMED) as error:
        raise ImagingError(f"{path} is not a whole DICOM file: {safe_reason(error)}.") from None


def _check_deflated(path: Path) -> None:
    """Inflate a file of the deflated transfer syntax in pieces, because pydicom inflates it in one step.

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
def translate_pydicom_errors(path: Path) -> Iterator[None]:
    """Turn pydicom's errors about malformed attributes into an ImagingError.

    pydicom's warnings and log lines are suppressed, because they quote attribute values, which may include names.
    """
    with _silent_pydicom():
        try:
            yield
        except MALFORMED as error:
            raise ImagingError(f"{path}: a DICOM attribute cannot be understood: {safe_reason(error)}.") from None


@contextmanager
def _silent_pydicom() -> Iterator[None]:
    logger, was = logging.getLogger("pydicom"), logging.getLogger("pydicom").disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was


def safe_reason(error: BaseException) -> str:
    """Return the reason of a foreign exception from a closed list of sentences, because its text may quote attributes."""
    if isinstance(error, MalformedError):
        return str(error)
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    text = str(error)
    for pattern, sentence in _REASONS:
        if re.search(pattern, text):
            return sentence
    return f"pydicom raised {type(error).__name__}"


def frame_count(dataset: Dataset) -> int:
    """Return NumberOfFrames, or 1 if it is absent or empty.

    Raises:
        MalformedError: if it is not a positive integer.
    """
    number = decimal(dataset, "NumberOfFrames")
    if number is None:
        return 1
    if number < 0 or number != int(number):
        raise MalformedError("NumberOfFrames is not a positive integer")
    return max(int(number), 1)


def integer(dataset: Dataset, keyword: str) -> int:
    """Return a required integer attribute.

    Raises:
        MalformedError: if it is absent, has several values, or is not an integer.
    """
    number = decimal(dataset, keyword)
    if number is None:
        raise MalformedError(f"it has no {keyword}")
    if number != int(number):
        raise MalformedError(f"{keyword} is not an integer")
    return int(number)


def decimal(dataset: Dataset, keyword: str) -> float | None:
    """Return an attribute with a single numeric value as a float, or None if it is absent or empty.

    Raises:
        MalformedError: if it has several values, or its value is not a finite number.
    """
    try:
        value = dataset.get(keyword)
        if value is None or value == "" or (isinstance(value, MultiValue) and len(value) == 0):
            return None
        if isinstance(value, MultiValue | list | tuple):
            raise MalformedError(f"{keyword} has {len(value)} values instead of one")
        number = float(value)
    except MalformedError:
        raise
    except MALFORMED:
        raise MalformedError(f"{keyword} is not a number") from None
    if not np.isfinite(number):
        raise MalformedError(f"{keyword} is not a finite number")
    return number


def floats(value: Any, count: int) -> tuple[float, ...] | None:
    """Return a multi-valued attribute as `count` finite floats, or None if it is absent, malformed or of another length."""
    if value is None or isinstance(value, str | bytes | float | int):
        return None
    try:
        numbers = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(np.isfinite(numbers)) else None


def functional_group(dataset: Dataset, index: int, sequence: str) -> Dataset | None:
    """Return the first item of a functional group of frame `index` (enhanced multi-frame objects), or None.

    The group of the frame takes precedence over the shared group.
    """
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    shared = dataset.get("SharedFunctionalGroupsSequence")
    for groups in ([frames[index]] if frames and index < len(frames) else []) + (list(shared) if shared else []):
        items = groups.get(sequence)
        if items:
            return items[0]
    return None
