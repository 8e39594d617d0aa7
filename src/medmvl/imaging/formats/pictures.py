"""Reader for picture files (PNG, JPEG, TIFF, BMP and the others in `FORMATS`) and for 2D numpy arrays."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import PIL.Image
from PIL import ExifTags, ImageSequence, TiffImagePlugin

from medmvl.errors import ImagingError, counted
from medmvl.imaging.formats.arrays import load_array
from medmvl.imaging.formats.netpbm import full_range, keep_stored_values
from medmvl.imaging.image import Image
from medmvl.imaging.limits import check_bytes, check_ratio

#: Formats that are read, by Pillow's names, whatever a file's suffix. Pillow knows more, and runs Ghostscript on PostScript
#: files, which are programs. A JPEG with several pictures (MPO) is opened as JPEG.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000")
#: Pillow's modes of gray values of more than 8 bits
DEEP_GRAY = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
#: first bytes of TIFF and BigTIFF files in both byte orders
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
#: TIFF tags (TIFF 6.0): bits per sample, photometric interpretation, sample format
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 259, 262, 339

# Pillow decodes float64 samples and WhiteIsZero of every depth, but its table of TIFF modes does not list them.
for _order, _rawmode in ((b"II", "F;64F"), (b"MM", "F;64BF")):
    TiffImagePlugin.OPEN_INFO.setdefault((_order, 1, (3,), 1, (64,), ()), ("F", _rawmode))
for (_order, _photometric, _format, _fill, _depths, _extra), _modes in list(TiffImagePlugin.OPEN_INFO.items()):
    if _photometric == 1 and _modes[0] in DEEP_GRAY:
        TiffImagePlugin.OPEN_INFO.setdefault((_order, 0, _format, _fill, _depths, _extra), _modes)


class _StoredTiff(TiffImagePlugin.TiffImageFile):
    """A TIFF file whose pixels stay as they are stored.

    Pillow (12.3) turns TIFF files by their orientation, and mixes up the rows of uncompressed ones that it turns by 90 degrees.

    Attributes:
        turned: the orientation of the current frame, 1 for none.
    """

    turned = 1

    def _setup(self) -> None:
        self.turned = self.tag_v2.get(ExifTags.Base.Orientation, 1)
        self.tag_v2.pop(ExifTags.Base.Orientation, None)
        super()._setup()

    def load_end(self) -> None:
        """Close the file after its only frame, as Pillow does, but turn nothing."""
        if not self.is_animated:
            self._close_exclusive_fp_after_loading = True


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(4) in _TIFF


def open_picture(source: Path | IO[bytes]) -> PIL.Image.Image:
    """Return a picture of one of `FORMATS`, whose pixels are not yet decoded.

    Raises:
        OSError: if it is of another format, damaged or too large.
    """
    try:
        return PIL.Image.open(source, formats=FORMATS)
    except PIL.Image.DecompressionBombError as error:
        raise OSError(str(error)) from error


def read_picture(path: Path, frame: int | None, max_bytes: int | None) -> Image:
    """Read a picture file: 8-bit gray stays (H, W), deeper gray keeps its depth, all else becomes RGB as in Pillow.

    An EXIF orientation is not applied (the reference does not apply it, and box coordinates refer to the stored pixels),
    nor is transparency; the image then has a warning. The first picture of a JPEG with several (MPF) is read.

    Raises:
        ImagingError: if the file is damaged, is no picture, is too large, or has several frames and `frame` is None.
    """
    try:
        # Pillow warns about EXIF data, and about large pictures at half its own limit.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _StoredTiff(path) if _is_tiff(path) else PIL.Image.open(path, formats=FORMATS) as picture:
                return _read(picture, path, frame, max_bytes)
    except PIL.Image.DecompressionBombError as error:
        raise ImagingError(f"{path}: {error} Shrink or crop the picture first.") from error
    except ImagingError:
        raise
    except (PIL.UnidentifiedImageError, SyntaxError):  # Pillow raises SyntaxError for a mode that it does not know
        raise ImagingError(f"{path} is not a whole picture file that can be read: {_unidentified(path)}.") from None
    except Exception as error:  # Pillow's decoders raise any type for a damaged file
        reason = " ".join(str(error).split()).replace(f" '{path}'", "")[:200] or type(error).__name__
        raise ImagingError(f"{path} is not a whole picture file that can be read: {reason}.") from error


def _unidentified(path: Path) -> str:
    """Return why Pillow does not open a file."""
    with path.open("rb") as handle:
        head = handle.read(4)
    if head in _TIFF:
        return "a TIFF with this combination of number type, channels and photometric interpretation is not supported"
    return "cannot identify image file; known are PNG, JPEG, TIFF, BMP, GIF, WEBP, PGM and JPEG 2000"


def _read(picture: PIL.Image.Image, path: Path, frame: int | None, max_bytes: int | None) -> Image:
    size = picture.width * picture.height * 4
    check_bytes(size, path, max_bytes)
    check_ratio(size, path.stat().st_size, path)
    kind = (picture.format or "picture").lower()
    if kind == "png":
        _check_png(path)
    depth = _depth(path, kind)
    notes = _select_frame(picture, frame, path)
    turned = picture.turned if isinstance(picture, _StoredTiff) else picture.getexif().get(ExifTags.Base.Orientation, 1)
    maxval = keep_stored_values(picture, path) if kind == "ppm" else None
    array = np.array(picture if picture.mode in ("L", *DEEP_GRAY) else picture.convert("RGB"))
    history = [f"read {kind}, mode {picture.mode}", *notes]
    inverted, window = False, full_range(array, maxval, history) if maxval is not None else None
    if kind == "tiff":
        array, inverted = _as_tiff_states(picture, array, history)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ImagingError(f"{path} holds NaN or infinite values, or values beyond single precision.")
    if array.dtype == np.int32 and array.min() >= 0 and array.max() <= 65535:
        array = array.astype(np.uint16)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return Image(
        array,
        window=window,
        inverted=inverted,
        history=tuple(history),
        warnings=tuple(_warnings(picture, turned, depth if array.dtype == np.uint8 else 8)),
        source="jpeg" if kind == "mpo" else kind,
    )


def _check_png(path: Path) -> None:
    """Compare the checksums of a PNG file's critical chunks, which Pillow does not do for the pixels (PNG, section 5).

    Raises:
        ValueError: if one differs.
    """
    with path.open("rb") as handle:
        handle.seek(8)
        name = b""
        while name != b"IEND":
            head = handle.read(8)
            size, name = int.from_bytes(head[:4], "big"), head[4:]
            content = handle.read(min(size, 2**31))
            expected = handle.read(4)
            if len(expected) < 4:
                raise ValueError("it ends early")
            if name[:1].isupper() and zlib.crc32(content, zlib.crc32(name)) != int.from_bytes(expected, "big"):
                raise ValueError("a checksum is wrong: the file was damaged")


def _as_tiff_states(picture: PIL.Image.Image, array: np.ndarray, history: list[str]) -> tuple[np.ndarray, bool]:
    """Return the array (H, W) or (H, W, 3) with the number type of a TIFF file, and whether low values are white.

    Pillow reads unsigned 32-bit values as signed ones and signed 8-bit values as unsigned ones, and inverts
    WhiteIsZero up to 8 bits only.
    """
    tags = picture.tag_v2  # type: ignore[attr-defined]
    bits, sample_format = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    depth, number = (value[0] if isinstance(value, tuple) else value for value in (bits, sample_format))
    if array.ndim == 3:
        if depth > 8:
            history.append(f"{depth}-bit colors reduced to 8 bits")
        return array, False
    if depth > 8 and tags.get(_COMPRESSION, 1) != 1 and tags.prefix == b"MM" and array.dtype != np.uint16:
        # Pillow swaps the bytes that libtiff has swapped already
        raise ValueError(
            f"compressed big-endian values of {depth} bits; save them uncompressed or in little-endian order"
        )
    white_is_zero = tags.get(_PHOTOMETRIC) == 0
    if depth == 32 and number == 1 and array.dtype == np.int32:
        array = array.view(np.uint32)
    elif depth == 8 and number == 2:
        if white_is_zero:
            raise ValueError("signed 8-bit values with WhiteIsZero")
        array = array.view(np.int8)
    elif depth == 64:
        history.append("float64 values rounded to float32")
    if white_is_zero and depth > 8:
        history.append("TIFF WhiteIsZero: low values are white")
        return array, True
    return array, False


def _depth(path: Path, kind: str) -> int:
    """Return the bits per sample that a PNG or JPEG 2000 file states, which Pillow reduces to 8 unless it is plain gray; else 8.

    Raises:
        ValueError: for signed samples of JPEG 2000, which Pillow shifts, and deep gray with transparency, which it reduces.
    """
    with path.open("rb") as handle:
        head = handle.read(2**16)
    if kind == "png":
        depth, color_type = head[24], head[25]  # IHDR (PNG, section 11.2.1)
        if depth > 8 and color_type == 4:
            raise ValueError("16-bit gray with transparency; save it without")
        return depth
    start = head.find(b"\xff\x4f\xff\x51") if kind == "jpeg2000" else -1
    if start < 0 or len(head) < start + 43:
        return 8
    size = head[start + 42]  # Ssiz of the first component (ISO 15444-1, A.5.1)
    if size & 0x80:
        raise ValueError("JPEG 2000 with signed values; save them as TIFF or npy")
    return (size & 0x7F) + 1


def _warnings(picture: PIL.Image.Image, turned: int, depth: int) -> list[str]:
    """Return warnings about an EXIF orientation and transparency, neither of which is applied, and about lost bits."""
    found = [f"{depth}-bit values reduced to 8 bits"] if depth > 8 else []
    if turned != 1:
        found.append(f"EXIF orientation {turned if turned in range(2, 9) else '(unknown)'} not applied")
    transparent = picture.mode in _ALPHA and int(np.asarray(picture.getchannel("A")).min()) < 255
    if transparent or "transparency" in picture.info:
        found.append("transparency not applied: transparent pixels show the color stored beneath")
    return found


def read_array_image(path: Path, max_bytes: int | None) -> Image:
    """Read a .npy or .npz file of shape (H, W), (H, W, 3) uint8, or these with a leading axis of length 1.

    Raises:
        ImagingError: if the file is damaged, contains NaN, or has another shape.
    """
    array = np.array(load_array(path, max_bytes))
    if array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ImagingError(f"{path} holds NaN or infinite values.")
    try:
        return Image(array, history=(f"read array of {array.dtype}",), source="npy")
    except ImagingError as error:
        raise ImagingError(f"{path}: {error}") from None


def _select_frame(picture: PIL.Image.Image, frame: int | None, path: Path) -> list[str]:
    """Go to the frame to read and return a line for the history."""
    count = int(getattr(picture, "n_frames", 1))
    if picture.format == "MPO" and frame is None:  # CIPA DC-007: the first image is the picture
        return [f"first of {count} pictures in the JPEG file (MPF)"]
    index = choose_frame(frame, count, path)
    if count == 1:
        return []
    ImageSequence.Iterator(picture)[index]
    return [f"frame {index} of {count}"]


def choose_frame(frame: int | None, count: int, path: Path) -> int:
    """Return the index of the frame to read.

    Raises:
        ImagingError: if there are several frames and none is named, or the named one does not exist.
    """
    if frame is None:
        if count == 1:
            return 0
        raise ImagingError(f"{path} holds {count} frames. Say which one: frame=0 to {count - 1}.")
    if not 0 <= frame < count:
        raise ImagingError(f"{path} holds {counted(count, 'frame')}; frame {frame} is not among 0 to {count - 1}.")
    return frame
