"""The pixels of a series into one array: raw bytes where they are raw, pydicom's decoders elsewhere; rescaled per slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medmvl.errors import ImagingError
from medmvl.imaging.dicom import decode, open_dicom
from medmvl.imaging.dicom_headers import Slice
from medmvl.imaging.dicom_scan import Series
from medmvl.imaging.rescale import check_rescale

_INT16 = np.iinfo(np.int16)
#: what "no measurement here" becomes in a CT: a little below air, as scanners pad
PADDED_HU = -1024


def load_slices(slices: list[Slice], series: Series, path: Path, history: list[str]) -> np.ndarray:
    """Return (D, H, W): int16 where every rescaled value is a whole number that fits, else float32.

    Raises:
        ImagingError: naming the file that is truncated or cannot be decoded.
    """
    for item in slices:
        check_rescale(item.slope, item.intercept, item.path)
    whole = all(item.slope.is_integer() and item.intercept.is_integer() for item in slices)
    reader = _Reader(series, path)
    shape = (len(slices), series.rows, series.columns)
    array = _fill_int16(slices, reader, shape) if whole else None
    if array is None:
        array = np.empty(shape, dtype=np.float32)
        for target, item in zip(array, slices, strict=True):
            stored = reader.read(item)
            with np.errstate(over="ignore"):  # infinite values are counted and refused afterwards
                target[...] = stored.astype(np.float64) * item.slope + item.intercept
            _pad(target, stored, series)
    rescales = {(item.slope, item.intercept) for item in slices}
    slope, intercept = next(iter(rescales))
    history.append(
        f"rescaled: value * {slope:g} + {intercept:g}"
        if len(rescales) == 1
        else f"rescaled slice by slice ({len(rescales)} different slopes and intercepts)"
    )
    if series.padding is not None and series.is_hu:
        history.append(f"padding value {series.padding[0]:g} of the file -> {PADDED_HU} HU")
    return array


def _fill_int16(slices: list[Slice], reader: _Reader, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Fill an int16 array, or return None as soon as a value does not fit."""
    array = np.empty(shape, dtype=np.int16)
    for target, item in zip(array, slices, strict=True):
        stored = reader.read(item)
        slope, intercept = int(item.slope), int(item.intercept)
        if stored.dtype.kind not in "iu":
            return None
        # 0 is as low as unsigned values get: one pass over the slice less
        low = 0 if stored.dtype.kind == "u" else int(stored.min())
        ends = [low * slope + intercept, int(stored.max()) * slope + intercept]
        if min(ends) < _INT16.min or max(ends) > _INT16.max:
            return None
        if slope == 1 and stored.dtype.itemsize == 2:
            # The sum fits (checked above), so arithmetic modulo 2^16 gives it, without a wider copy.
            np.add(stored.view(np.uint16), np.uint16(intercept % 2**16), out=target.view(np.uint16))
        else:
            target[...] = stored.astype(np.int64) * slope + intercept
        _pad(target, stored, reader.series)
    return array


def _pad(target: np.ndarray, stored: np.ndarray, series: Series) -> None:
    if series.padding is not None and series.is_hu:
        low, high = series.padding
        target[(stored >= low) & (stored <= high)] = PADDED_HU


class _Reader:
    """Reads stored slices; keeps the frames of the last multi-frame file and one buffer."""

    def __init__(self, series: Series, path: Path) -> None:
        self.series = series
        self._path = path
        self._buffer = np.empty((series.rows, series.columns), dtype="<u2")
        self._frames: tuple[Path, np.ndarray] | None = None

    def read(self, item: Slice) -> np.ndarray:
        """Return the stored (H, W) values of a slice; they are valid until the next call."""
        if item.raw is not None:
            return self._read_raw(item.path, *item.raw)
        if item.frame is None:
            pixels = decode(open_dicom(item.path), item.path, None, None)
        else:
            if self._frames is None or self._frames[0] != item.path:
                self._frames = (item.path, decode(open_dicom(item.path), item.path, None, None))
            pixels = self._frames[1]
            pixels = pixels[item.frame] if pixels.ndim == 3 else pixels
        if pixels.shape != (self.series.rows, self.series.columns):
            raise ImagingError(f"{item.path} decodes to shape {pixels.shape}, its header says otherwise.")
        return pixels

    def _read_raw(self, path: Path, offset: int, dtype: str) -> np.ndarray:
        with path.open("rb") as handle:
            handle.seek(offset)
            count = handle.readinto(self._buffer.data.cast("B"))
        if count < self._buffer.nbytes:
            raise ImagingError(f"{path} is truncated: {count:,} of {self._buffer.nbytes:,} bytes of pixels are there.")
        return self._buffer.view(dtype)
