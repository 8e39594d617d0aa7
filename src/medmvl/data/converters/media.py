"""Images and volumes of converters: checks of source files, and export of embedded pictures."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmvl.data.converters.converter import Job
from medmvl.errors import OutputError
from medmvl.files import atomic
from medmvl.imaging.formats.pictures import DEEP_GRAY, open_picture


def relative_media(job: Job, *candidates: Path, kind: str = "image") -> str | None:
    """Return the first of `candidates` that exists, relative to the source; None, with a fault, if there is none.

    A path that leaves the source by ".." and a file of no bytes (a download that never began) are faults, too. A symbolic
    link in the source may lead anywhere.
    """
    found = next((candidate for candidate in candidates if path_exists(candidate)), None)
    if found is None:
        job.report.fault(f"{kind} is missing", "/".join(candidates[0].parts[-2:])[:200])
        return None
    fault = usable_source(found, job.source, kind)
    if fault:
        job.report.fault(fault, found.name)
        return None
    return Path(os.path.normpath(found)).relative_to(os.path.normpath(job.source)).as_posix()


def usable_source(file: Path, source: Path, kind: str = "image") -> str:
    """Return why a file of the source cannot be used, or ""."""
    words = {"outside": "path leaves the source", "missing": "is missing", "empty": "is an empty file"}
    return f"{kind} {words[state]}" if (state := source_state(file, source)) in words else ""


def source_state(file: Path, source: Path) -> Literal["outside", "missing", "empty", "usable"]:
    """Return whether a path is outside of the source, missing, an empty file, or a file or folder that can be used."""
    if not Path(os.path.normpath(file)).is_relative_to(os.path.normpath(source)):
        return "outside"
    if not path_exists(file):
        return "missing"
    return "empty" if file.is_file() and not file.stat().st_size else "usable"


def path_exists(path: Path) -> bool:
    """Return whether a file or folder exists; False for a name that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or with a NUL character
        return False


def image_size(file: Path) -> tuple[int, int] | None:
    """Return (width, height) from a picture's header, or None if it is not a readable picture."""
    try:
        with open_picture(file) as picture:
            return picture.size
    except OSError:  # also Pillow's for an unknown format
        return None


def export_bytes(job: Job, data: bytes, folder: str) -> str | None:
    """Write an encoded picture below `out/folder`, named by its content so that repeats are stored once.

    Gray and RGB pictures and gray ones of more than 8 bits keep their bytes; others (CMYK, palette ...) become RGB PNG. Returns
    the path relative to `out`, or None if the bytes are no picture.
    """
    job.report.exported = True
    digest = hashlib.sha256(data).hexdigest()[:20]
    try:
        with open_picture(io.BytesIO(data)) as picture:
            plain = picture.mode in ("L", "RGB") and picture.format in ("JPEG", "PNG")
            plain = plain or picture.mode in DEEP_GRAY
            target = f"{folder}/{digest}.{(picture.format or 'png').lower() if plain else 'png'}"
            if not (job.out / target).is_file():
                with atomic(job.out / target) as temporary:
                    if plain:
                        temporary.write_bytes(data)
                    else:
                        picture.convert("RGB").save(temporary, format="PNG")
    except OutputError:
        raise
    except Exception as error:  # Pillow's decoders raise any type for damaged bytes
        if isinstance(error, OSError) and error.errno is not None:  # of the output, such as a full disk
            raise
        return None
    return target


def export_array(job: Job, pixels: NDArray[np.uint8], target: str) -> str:
    """Write a gray (H, W) or RGB (H, W, 3) uint8 picture as PNG at `out/target`; return `target`."""
    job.report.exported = True
    if not (job.out / target).is_file():
        with atomic(job.out / target) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
    return target
