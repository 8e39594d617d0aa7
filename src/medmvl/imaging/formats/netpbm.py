"""Stored values of PGM and PPM files, whose largest value (maxval) Pillow stretches to 255 or 65535."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

from medmvl.imaging.preprocessing.windows import Window


def keep_stored_values(picture: PIL.Image.Image, path: Path) -> int | None:
    """Let Pillow read the gray values of an open PGM file as they are stored; return its maxval if it is an unusual one.

    Colors stay as Pillow reads them: stretched from 0 to maxval to 0 to 255, as netpbm defines them.

    Raises:
        ValueError: if another picture follows, of which Pillow knows nothing.
    """
    tile = picture.tile[0]  # type: ignore[attr-defined]
    decoder, _, offset, arguments = tile
    maxval = arguments[1] if isinstance(arguments, tuple) and decoder in ("ppm", "ppm_plain") else None
    if decoder in ("raw", "ppm") and picture.mode in ("L", "I", "RGB"):
        wide = picture.mode == "I" or (maxval or 0) > 255
        _check_end(path, offset + picture.width * picture.height * len(picture.getbands()) * (2 if wide else 1))
    usual = 255 if picture.mode in ("L", "RGB") else 65535
    if maxval is None or maxval == usual:
        return None
    if picture.mode in ("L", "I"):  # Pillow stretches nothing if maxval is the largest value of the mode
        picture.tile = [tile._replace(args=(arguments[0], usual))]  # type: ignore[attr-defined]
    return int(maxval)


def _check_end(path: Path, end: int) -> None:
    """Raise if the bytes from `end` on begin another picture."""
    with path.open("rb") as handle:
        handle.seek(end)
        rest = handle.read(64).lstrip()
    if rest[:1] == b"P" and rest[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6"):
        raise ValueError("it holds several pictures; write each to a file of its own")


def full_range(array: np.ndarray, maxval: int, history: list[str]) -> Window | None:
    """Return the window with which an 8-bit gray array (H, W) is shown from black at 0 to white at maxval.

    Deeper values and colors need none.

    Raises:
        ValueError: if a value is above maxval.
    """
    if array.ndim == 3:
        history.append(f"colors stretched from 0 to {maxval} to 0 to 255")
        return None
    if int(array.max()) > maxval:
        raise ValueError(f"a gray value is above its maxval of {maxval}")
    history.append(f"gray values from 0 to {maxval}, as stored")
    return Window(maxval / 2, maxval, "LINEAR_EXACT") if maxval < 256 else None
