"""PNG, JPEG, TIFF, BMP (and what else Pillow opens), and 2D numpy arrays."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ExifTags, ImageSequence

from medmvl.errors import ImagingError
from medmvl.imaging.arrays import load_array
from medmvl.imaging.image import Image
from medmvl.imaging.limits import check_bytes

_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


def read_picture(path: Path, frame: int | None, max_bytes: int | None) -> Image:
    """Read a picture file: 8-bit grey stays (H, W), deeper grey keeps its depth, all else becomes RGB as Pillow does.

    An EXIF orientation is not applied (the reference does not, and box coordinates refer to the stored pixels); the
    history says so.
    """
    try:
        # Pillow warns about large pictures at half its limit, where ours is the one that counts, and about EXIF data.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PIL.Image.open(path) as picture:
                check_bytes(picture.width * picture.height * 4, path, max_bytes)
                history = _select_frame(picture, frame, path)
                array = np.array(picture if picture.mode in ("L", *_DEEP_GREY) else picture.convert("RGB"))
                kind, mode = (picture.format or "picture").lower(), picture.mode
                turned = int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except PIL.Image.DecompressionBombError as error:
        raise ImagingError(f"{path}: {error} Shrink or crop the picture first.") from error
    except ImagingError:
        raise
    except Exception as error:  # its many decoders raise what they like for a damaged file
        reason = " ".join(str(error).split()).replace(f" '{path}'", "")[:200] or type(error).__name__
        raise ImagingError(f"{path} is not a whole picture file that can be read: {reason}.") from error
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ImagingError(f"{path} holds NaN or infinite values.")
    if array.dtype == np.int32 and array.min() >= 0 and array.max() <= 65535:
        array = array.astype(np.uint16)
    if turned != 1:
        history.append(f"EXIF orientation {turned} not applied")
    return Image(array, history=(f"read {kind}, mode {mode}", *history), source=kind)


def read_array_image(path: Path, max_bytes: int | None) -> Image:
    """Read a .npy or .npz file of shape (H, W), (H, W, 3) uint8, or these with a leading axis of length 1."""
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
    count = int(getattr(picture, "n_frames", 1))
    index = choose_frame(frame, count, path)
    if count == 1:
        return []
    ImageSequence.Iterator(picture)[index]
    return [f"frame {index} of {count}"]


def choose_frame(frame: int | None, count: int, path: Path) -> int:
    """Return the index to read, or raise an ImagingError if none or an impossible one is named."""
    if frame is None:
        if count == 1:
            return 0
        raise ImagingError(f"{path} holds {count} frames. Say which one: frame=0 to {count - 1}.")
    if not 0 <= frame < count:
        raise ImagingError(f"{path} holds {count} frame(s); frame {frame} is not among 0 to {count - 1}.")
    return frame
