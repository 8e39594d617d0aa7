"""Decoding of one DICOM frame to stored values: uncompressed and RLE in this process, the rest in a child process."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame, parse_basic_offsets, parse_fragments
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID, JPEG2000Lossless, RLELossless

from medmvl.errors import ImagingError
from medmvl.imaging.decoder import DECODER, DecoderError
from medmvl.imaging.decoder_process import FIXED
from medmvl.imaging.dicom.codestream import Codestream, read_codestream
from medmvl.imaging.dicom.dataset import MALFORMED, MalformedError, frame_count, integer, safe_reason
from medmvl.imaging.dicom.known_values import known_modality, known_photometric, syntax_name
from medmvl.imaging.dicom.values import PixelFormat, has_unused_bits, pixel_format, significant_bits
from medmvl.imaging.limits import check_bytes, check_ratio

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
#: transfer syntaxes whose decoded values are the encoded ones
_LOSSLESS = {RLELossless, JPEG2000Lossless} | {f"1.2.840.10008.1.2.4.{end}" for end in ("57", "70", "80", "201", "202")}


@dataclass(frozen=True)
class Frame:
    """Decoded pixels of one frame.

    Attributes:
        values: (rows, columns) or (rows, columns, 3) RGB, without unused bits.
        words: (rows, columns) words with their unused bits, if these were not all zero or sign; else None.
        notes: corrections that were made, for the history.
        warnings: doubtful findings.
    """

    values: np.ndarray
    words: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


#: First bytes of a JPEG, JPEG-LS or JPEG 2000 image.
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")
#: Photometric interpretations that a decoder of JPEG or JPEG 2000 undoes (PS3.5 8.2.3).
_COMPRESSED_ONLY = ("YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT")


def decode_frame(dataset: Dataset, path: Path, index: int, max_bytes: int | None = None) -> Frame:
    """Decode one frame of a data set; YBR colors are converted to RGB.

    Args:
        index: frame number from 0.
        max_bytes: limit of the decoded size.

    Raises:
        ImagingError: if the file has no pixels, or they cannot be decoded.
    """
    if not any(dataset[keyword].value for keyword in PIXEL_KEYWORDS if keyword in dataset):
        raise ImagingError(f"{path} is a DICOM file without pixels ({known_modality(dataset)}), or truncated.")
    for keyword in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation"):
        if dataset.get(keyword) in (None, ""):
            raise ImagingError(f"{path} has pixels but no {keyword}: they cannot be decoded.")
    try:
        return _decode(dataset, path, index, max_bytes)
    except DecoderError as error:
        name = syntax_name(str(dataset.file_meta.TransferSyntaxUID))
        if error.no_decoder:
            raise ImagingError(
                f"{path}: its pixels cannot be decoded: none of the installed decoders reads this {name} data, or they "
                "are damaged. Convert the file to an uncompressed one, e.g. with gdcmconv --raw."
            ) from None
        raise ImagingError(f"{path}: its pixels cannot be decoded: {name}, {error}.") from None
    except MALFORMED as error:
        raise ImagingError(f"{path}: its pixels cannot be decoded: {safe_reason(error)}.") from None


def _decode(dataset: Dataset, path: Path, index: int, max_bytes: int | None) -> Frame:
    if not getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None):
        _assume_transfer_syntax(dataset)
    if known_photometric(dataset) is None:
        raise MalformedError("its photometric interpretation is not supported")
    samples = 1 if dataset.get("SamplesPerPixel") in (None, "") else integer(dataset, "SamplesPerPixel")
    size = integer(dataset, "Rows") * integer(dataset, "Columns") * samples
    size *= max(integer(dataset, "BitsAllocated") // 8, 1)
    check_bytes(size, path, max_bytes)
    floating = "PixelData" not in dataset
    bits = None if floating else pixel_format(dataset)
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    if (not syntax.is_encapsulated or syntax == RLELossless) and known_photometric(dataset) in _COMPRESSED_ONLY:
        raise MalformedError("its photometric interpretation is one of JPEG pixels only, and these are none")
    if not syntax.is_encapsulated:
        found = _surplus(dataset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = _native(pixel_array(dataset, index=index, correct_unused_bits=False))
        if bits is None or bits.allocated < 8:  # packed bits, which pydicom unpacks
            return Frame(pixels, warnings=found)
        return replace(_without_unused_bits(pixels, bits, bits.shift), warnings=found)
    assert bits is not None
    return _decode_compressed(dataset, path, index, size, bits)


def _surplus(dataset: Dataset) -> tuple[str, ...]:
    """Return a warning about bytes after the uncompressed pixels; one byte of padding is legal (PS3.5 8.1.1).

    Raises:
        MalformedError: if there are as many as a frame has, or as a row or a column and they are not all zero, as padding
            is: Rows, Columns, SamplesPerPixel, BitsAllocated or NumberOfFrames are then wrong, and pixels are missing or in
            the wrong places.
    """
    keyword = next(keyword for keyword in PIXEL_KEYWORDS if keyword in dataset)
    expected = get_expected_length(dataset, unit="bytes")
    rest = dataset[keyword].value[expected:]
    excess = len(rest)
    if excess <= 1:
        return ()
    line = min(integer(dataset, "Rows"), integer(dataset, "Columns"))
    sample = max(integer(dataset, "BitsAllocated") // 8, 1)
    frame = expected // max(integer(dataset, "NumberOfFrames") if dataset.get("NumberOfFrames") else 1, 1)
    if excess >= frame or (excess >= line * sample and any(rest)):
        raise MalformedError(
            f"its pixel data have {expected + excess:,} bytes, but Rows, Columns, SamplesPerPixel, BitsAllocated and "
            f"NumberOfFrames make {expected:,}"
        )
    return (f"{excess} bytes after the pixels ignored",)


def _check_fragments(dataset: Dataset, frames: int) -> None:
    """Raise a MalformedError if the compressed pixels hold more frames than NumberOfFrames states."""
    buffer = BytesIO(dataset.PixelData)
    parse_basic_offsets(buffer)
    count, offsets = parse_fragments(buffer)
    if count <= frames:
        return
    images = sum(dataset.PixelData.startswith(_STARTS, offset + 8) for offset in offsets)  # after tag and length
    if dataset.file_meta.TransferSyntaxUID == RLELossless:  # a frame is one fragment (PS3.5 A.4.2)
        images = count
    if images > frames:
        raise MalformedError(f"its pixel data hold {images} compressed images, but NumberOfFrames states {frames}")


def _decode_compressed(dataset: Dataset, path: Path, index: int, size: int, bits: PixelFormat) -> Frame:
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if bits.shift and syntax != RLELossless:
        raise MalformedError("HighBit is not BitsStored - 1, which compressed pixels do not allow")
    count = frame_count(dataset)
    _check_fragments(dataset, count)
    frame = get_frame(dataset.PixelData, index, number_of_frames=count)
    check_ratio(size, len(frame), path)
    stream = read_codestream(frame, syntax)
    if stream.size is not None and stream.size != (dataset.Rows, dataset.Columns):
        raise MalformedError("its size differs from that of the compressed image")
    notes = []
    photometric = known_photometric(dataset) or ""
    if stream.color is not None and ("YBR" in photometric) != ("YBR" in stream.color):
        photometric = stream.color
        notes.append(f"colors decoded as {photometric}, which the JPEG stream states against the header")
    options: dict[str, Any] = {
        "rows": int(dataset.Rows),
        "columns": int(dataset.Columns),
        "samples_per_pixel": int(dataset.get("SamplesPerPixel") or 1),
        "bits_allocated": bits.allocated,
        "bits_stored": bits.stored,
        "pixel_representation": int(bits.signed),
        "photometric_interpretation": photometric,
    }
    if options["samples_per_pixel"] > 1:
        options["planar_configuration"] = int(dataset.get("PlanarConfiguration") or 0)
    if syntax == RLELossless:
        pixels = _decode_rle(frame, size, options)
    else:
        pixels = _native(DECODER.decode(syntax, frame, size, options))
    if pixels.ndim == 3:
        return Frame(pixels, notes=tuple(notes))
    return _checked_precision(pixels, bits, stream, syntax)


def _decode_rle(frame: bytes, size: int, options: dict[str, Any]) -> np.ndarray:
    """Return an RLE frame (rows, columns) or (rows, columns, samples), decoded in this process.

    Its decoder is pydicom's, which is Python and cannot crash; a child process would cost more than it protects.
    """
    if len(frame) > 2 * size + 4096:  # it could decode to 128 times its length
        raise MalformedError("its compressed stream is longer than its pixels")
    array, _ = get_decoder(RLELossless).as_array(encapsulate([frame]), **FIXED, **options)
    return _native(array)


def _checked_precision(pixels: np.ndarray, bits: PixelFormat, stream: Codestream, syntax: str) -> Frame:
    """Return the values of decoded words (rows, columns), whose precision may differ from BitsStored."""
    precision = stream.precision or bits.stored
    if precision < bits.stored and bits.signed and not stream.signed:
        raise MalformedError("its compressed stream has fewer bits than BitsStored and no sign")
    if precision > bits.stored and syntax not in _LOSSLESS:
        low, high = bits.limits
        if pixels.min() < low or pixels.max() > high:
            raise MalformedError("its lossy stream has values beyond BitsStored")
    if precision < bits.stored:
        return Frame(pixels)
    return _without_unused_bits(pixels, bits, bits.shift)


def _without_unused_bits(pixels: np.ndarray, bits: PixelFormat, shift: int) -> Frame:
    if pixels.dtype.kind not in "iu" or (bits.stored == pixels.dtype.itemsize * 8 and not shift):
        return Frame(pixels)
    values = significant_bits(pixels, bits, shift)
    if np.array_equal(values, pixels):
        return Frame(pixels)
    if not has_unused_bits(pixels, bits, shift):  # negative values without the sign in their unused bits
        return Frame(values)
    return Frame(values, pixels, ("bits beyond BitsStored ignored",))


def _native(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _assume_transfer_syntax(dataset: Dataset) -> None:
    """Set the transfer syntax of a file without a meta header to the encoding in which it was parsed."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    implicit, little = dataset.original_encoding
    if not little:
        uid = pydicom.uid.ExplicitVRBigEndian
    else:
        uid = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = uid
