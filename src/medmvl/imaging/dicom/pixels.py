"""Loading of the pixels of a series into one array, rescaled slice by slice."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medmvl.errors import ImagingError
from medmvl.imaging.dicom.dataset import open_dicom, translate_pydicom_errors
from medmvl.imaging.dicom.decoding import Frame, decode_frame
from medmvl.imaging.dicom.headers import Slice
from medmvl.imaging.dicom.scan import Series
from medmvl.imaging.dicom.values import PADDED_HU, extremes_within, has_unused_bits, significant_bits

_INT16 = np.iinfo(np.int16)


@dataclass
class Loaded:
    """The values of a series and what was found while they were loaded.

    Attributes:
        array: (D, H, W) int16 if every rescaled value is an integer that fits, else float32.
        padded: number of padding voxels that were replaced.
        notes: corrections of stored values, with the number of slices.
        warnings: doubtful findings about the pixels, with the number of slices.
        constant: files of slices that hold a single value.
    """

    array: np.ndarray
    padded: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    constant: list[Path] = field(default_factory=list)


def load_slices(slices: list[Slice], series: Series) -> Loaded:
    """Return the rescaled values of `slices`.

    Raises:
        ImagingError: if a file is truncated or cannot be decoded; names the file.
    """
    shape = (len(slices), series.rows, series.columns)
    integral = all(_is_integral(item) for item in slices)
    with _Reader(slices, series) as reader:
        loaded = _fill_int16(slices, reader, shape, series.is_hu) if integral else None
        return loaded or _fill_float32(slices, reader, shape, series.is_hu)


def _is_integral(item: Slice) -> bool:
    return float(item.values.rescale.slope).is_integer() and float(item.values.rescale.intercept).is_integer()


def _fill_float32(slices: list[Slice], reader: _Reader, shape: tuple[int, int, int], is_hu: bool) -> Loaded:
    loaded = Loaded(np.empty(shape, dtype=np.float32))
    for index, (target, item) in enumerate(zip(loaded.array, slices, strict=True)):
        frame = reader.read(index)
        rescale = item.values.rescale
        with np.errstate(over="ignore"):  # infinite values are counted and refused afterwards
            target[...] = frame.values.astype(np.float64) * rescale.slope + rescale.intercept
        if frame.values.min() == frame.values.max():
            loaded.constant.append(item.path)
        _note(loaded, target, frame, item, is_hu)
    return loaded


def _fill_int16(slices: list[Slice], reader: _Reader, shape: tuple[int, int, int], is_hu: bool) -> Loaded | None:
    """Fill an int16 array, or return None as soon as a value does not fit."""
    loaded = Loaded(np.empty(shape, dtype=np.int16))
    for index, (target, item) in enumerate(zip(loaded.array, slices, strict=True)):
        frame = reader.read(index)
        stored, bits = frame.values, item.values.bits
        slope, intercept = int(item.values.rescale.slope), int(item.values.rescale.intercept)
        if stored.dtype.kind not in "iu" or bits is None:
            return None
        low, high, fits = extremes_within(stored, bits)
        if not fits and item.raw is not None:
            notes = ("bits beyond BitsStored ignored",) if has_unused_bits(stored, bits, 0) else ()
            frame = Frame(significant_bits(stored, bits, 0), stored, notes)
            stored = frame.values
            low, high, _ = extremes_within(stored, bits)
        ends = [low * slope + intercept, high * slope + intercept]
        if min(ends) < _INT16.min or max(ends) > _INT16.max:
            return None
        if slope == 1 and stored.dtype.itemsize == 2:
            # The sum fits (checked above), so arithmetic modulo 2^16 gives it, without a wider copy.
            np.add(stored.view(np.uint16), np.uint16(intercept % 2**16), out=target.view(np.uint16))
        else:
            target[...] = stored.astype(np.int64) * slope + intercept
        if high == low or (high == 0 and stored.dtype.kind == "u"):
            loaded.constant.append(item.path)
        _note(loaded, target, frame, item, is_hu)
    return loaded


def _note(loaded: Loaded, target: np.ndarray, frame: Frame, item: Slice, is_hu: bool) -> None:
    """Replace padding in a slice (H, W) of a CT, and count corrections."""
    loaded.notes.update(frame.notes)
    loaded.warnings.update(frame.warnings)
    if item.values.padding is not None and is_hu:
        mask = item.values.padding.mask(frame.values, frame.words)
        count = int(np.count_nonzero(mask))
        if count:
            target[mask] = PADDED_HU
            loaded.padded += count


class _Reader:
    """Reader of stored slices with one buffer; compressed slices are decoded one ahead."""

    def __init__(self, slices: list[Slice], series: Series) -> None:
        self._slices, self._series = slices, series
        self._buffer = np.empty((series.rows, series.columns), dtype="<u2")
        self._open: tuple[Path, Dataset] | None = None
        self._ahead: tuple[int, Future[Frame]] | None = None
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def read(self, index: int) -> Frame:
        """Return the stored (H, W) values of a slice; they are valid until the next call."""
        item = self._slices[index]
        if item.raw is not None:
            return self._read_raw(item, *item.raw)
        if self._ahead is None or self._ahead[0] != index:
            self._ahead = (index, self._thread.submit(self._decode, index))
        frame = self._ahead[1].result()
        following = index + 1
        self._ahead = None
        if following < len(self._slices) and self._slices[following].raw is None:
            self._ahead = (following, self._thread.submit(self._decode, following))
        return frame

    def _decode(self, index: int) -> Frame:
        item = self._slices[index]
        with translate_pydicom_errors(item.path):
            if self._open is None or self._open[0] != item.path:
                self._open = (item.path, open_dicom(item.path))
            frame = decode_frame(self._open[1], item.path, item.frame or 0)
        if frame.values.shape != (self._series.rows, self._series.columns):
            raise ImagingError(f"{item.path} decodes to shape {frame.values.shape}, its header says otherwise.")
        return frame

    def _read_raw(self, item: Slice, offset: int, dtype: str) -> Frame:
        with item.path.open("rb") as handle:
            handle.seek(offset)
            count = handle.readinto(self._buffer.data.cast("B"))
        if count < self._buffer.nbytes:
            raise ImagingError(
                f"{item.path} is truncated: {count:,} of {self._buffer.nbytes:,} bytes of pixels are there."
            )
        words = self._buffer.view(dtype)
        bits = item.values.bits
        if bits is not None and bits.shift:
            return Frame(significant_bits(words, bits, bits.shift), words)
        return Frame(words)
