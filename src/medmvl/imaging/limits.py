"""Limits that hold before memory is taken: a header may promise anything."""

from __future__ import annotations

import os

from medmvl.errors import ImagingError

#: Largest decoded image or volume: 4 GiB, a 1024x1024x2048 int16 scan. MEDMVL_MAX_BYTES overrides it.
DEFAULT_MAX_BYTES = 4 * 1024**3

#: deflate cannot shrink data more than this (zlib's own documentation: 1032:1)
MAX_DEFLATE_RATIO = 1100


def check_bytes(wanted: int, what: object, max_bytes: int | None = None) -> None:
    """Raise an ImagingError if decoding `what` would take more than the limit."""
    limit = max_bytes if max_bytes is not None else int(os.environ.get("MEDMVL_MAX_BYTES", DEFAULT_MAX_BYTES))
    if wanted > limit:
        raise ImagingError(
            f"{what} would decode to {wanted / 1024**2:,.0f} MiB; the limit is {limit / 1024**2:,.0f} MiB. "
            "If the file is sound, raise the limit with max_bytes=... or the environment variable MEDMVL_MAX_BYTES."
        )


def check_deflate_ratio(decoded: int, compressed: int, what: object) -> None:
    """Raise an ImagingError if `compressed` bytes of deflate cannot hold the `decoded` bytes a header promises."""
    if decoded > compressed * MAX_DEFLATE_RATIO:
        raise ImagingError(
            f"{what} promises {decoded:,} bytes of voxels in {compressed:,} compressed bytes: the file is truncated "
            "or its header is wrong."
        )
