"""Rescaling of stored values by slope and intercept without integer overflow."""

from __future__ import annotations

import numpy as np

from medmvl.errors import ImagingError

_INT16 = np.iinfo(np.int16)
#: warning about a legal rescale that hardly any scanner writes
NEGATIVE_SLOPE = "the rescale slope is negative: low stored values became high ones"


def check_rescale(slope: float, intercept: float, what: object) -> tuple[float, float]:
    """Return slope and intercept as floats, or raise an ImagingError if they are not finite or the slope is 0."""
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise ImagingError(f"{what}: rescale slope {slope} and intercept {intercept} cannot be right.")
    return float(slope), float(intercept)


def rescale(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Return stored * slope + intercept of a (D, H, W) array, slice by slice.

    Returns:
        (D, H, W): the array itself for slope 1 and intercept 0; int16 if slope and intercept are integers and the
        result fits; else float32.
    """
    if slope == 1 and intercept == 0:
        return stored
    if stored.dtype.kind in "iu" and float(slope).is_integer() and float(intercept).is_integer():
        ends = [
            int(e) * int(slope) + int(intercept) for e in (min(p.min() for p in stored), max(p.max() for p in stored))
        ]
        if _INT16.min <= min(ends) and max(ends) <= _INT16.max:
            shifted = np.empty(stored.shape, dtype=np.int16)
            for source, target in zip(stored, shifted, strict=True):
                target[...] = source.astype(np.int64) * int(slope) + int(intercept)
            return shifted
    scaled = np.empty(stored.shape, dtype=np.float32)
    for source, target in zip(stored, scaled, strict=True):
        with np.errstate(over="ignore"):  # infinite values are counted and refused by the reader
            target[...] = source.astype(np.float64) * slope + intercept
    return scaled
