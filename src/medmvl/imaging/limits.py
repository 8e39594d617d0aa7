"""Size limits that are checked before memory is allocated, because a header may state any size."""

from __future__ import annotations

import os

from medmvl.errors import ImagingError

#: Largest decoded image or volume: 4 GiB, a 1024x1024x2048 int16 scan. MEDMVL_MAX_BYTES overrides it.
DEFAULT_MAX_BYTES = 4 * 1024**3

#: A DEFLATE stream decompresses to at most 1032 times its size (zlib's documentation).
MAX_DEFLATE_RATIO = 1100
#: Decoded sizes below this are harmless at any compression ratio.
HARMLESS_BYTES = 2**26


def byte_limit(max_bytes: int | None = None) -> int:
    """Return the limit in bytes: the argument, else MEDMVL_MAX_BYTES, else the default.

    Raises:
        ImagingError: if MEDMVL_MAX_BYTES is not a positive integer.
    """
    if max_bytes is not None:
        return max_bytes
    text = os.environ.get("MEDMVL_MAX_BYTES", "").strip()
    if not text:
        return DEFAULT_MAX_BYTES
    if not text.isdecimal() or len(text) > 18 or int(text) == 0:
        raise ImagingError("The environment variable MEDMVL_MAX_BYTES must be a number of bytes, such as 8589934592.")
    return int(text)


def check_bytes(wanted: int, what: object, max_bytes: int | None = None) -> None:
    """Raise an ImagingError if decoding `what` to `wanted` bytes exceeds the limit."""
    limit = byte_limit(max_bytes)
    if wanted > limit:
        raise ImagingError(
            f"{what} would decode to {wanted / 1024**2:,.0f} MiB; the limit is {limit / 1024**2:,.0f} MiB. "
            "If the file is sound, raise the limit with max_bytes=... or the environment variable MEDMVL_MAX_BYTES."
        )


def check_deflate_ratio(decoded: int, compressed: int, what: object) -> None:
    """Raise an ImagingError if `compressed` bytes of DEFLATE cannot contain the `decoded` bytes stated in a header."""
    if decoded > compressed * MAX_DEFLATE_RATIO:
        raise ImagingError(
            f"{what} promises {decoded:,} bytes of voxels in {compressed:,} compressed bytes: the file is truncated "
            "or its header is wrong."
        )


def check_ratio(decoded: int, compressed: int, what: object) -> None:
    """Raise an ImagingError if large pixels are compressed more than 1100 times, in any format."""
    if decoded > HARMLESS_BYTES and decoded > compressed * MAX_DEFLATE_RATIO:
        raise ImagingError(
            f"{what} would decode {compressed:,} bytes to {decoded:,}, more than {MAX_DEFLATE_RATIO} times as many: "
            "it is damaged or made to exhaust memory."
        )
