"""Pictures on their way into records: is the file there, is it a picture, and how exported ones are written."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from medmvl.data.prepare.base import Job
from medmvl.files import atomic


def relative_media(job: Job, *candidates: Path, kind: str = "image") -> str | None:
    """Return the first of `candidates` that exists, relative to the source; None, with a fault, if there is none.

    A path that leaves the source (a symbolic link or "..") and a file of no bytes (a download that never began) are
    faults, too.
    """
    for candidate in candidates:
        if not candidate.exists():
            continue
        if not candidate.resolve().is_relative_to(job.source.resolve()):
            job.ledger.fault(f"{kind} path leaves the source", candidate.name)
            return None
        if candidate.is_file() and not candidate.stat().st_size:
            job.ledger.fault(f"{kind} is an empty file", candidate.name)
            return None
        return candidate.relative_to(job.source).as_posix()
    job.ledger.fault(f"{kind} is missing", "/".join(candidates[0].parts[-2:]))
    return None


def image_size(file: Path) -> tuple[int, int] | None:
    """Return (width, height) from a picture's header, or None if it is not a readable picture."""
    try:
        with Image.open(file) as picture:
            return picture.size
    except (UnidentifiedImageError, OSError):
        return None


def export_bytes(job: Job, data: bytes, folder: str) -> str | None:
    """Write an encoded picture below `out/folder`, named by its content so that repeats are stored once.

    Grey and RGB pictures keep their bytes; others (CMYK, palette, 16 bit) become RGB PNG. Returns the path relative to
    `out`, or None if the bytes are no picture.
    """
    job.ledger.exported = True
    digest = hashlib.sha256(data).hexdigest()[:20]
    try:
        with Image.open(io.BytesIO(data)) as picture:
            plain = picture.mode in ("L", "RGB") and picture.format in ("JPEG", "PNG")
            target = f"{folder}/{digest}.{(picture.format or 'png').lower() if plain else 'png'}"
            if not (job.out / target).is_file():
                with atomic(job.out / target) as temporary:
                    if plain:
                        temporary.write_bytes(data)
                    else:
                        picture.convert("RGB").save(temporary, format="PNG")
    except (UnidentifiedImageError, OSError):
        return None
    return target


def export_array(job: Job, pixels: NDArray[np.uint8], target: str) -> str:
    """Write a grey (H, W) or RGB (H, W, 3) uint8 picture as PNG at `out/target`; return `target`."""
    job.ledger.exported = True
    if not (job.out / target).is_file():
        with atomic(job.out / target) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
    return target
