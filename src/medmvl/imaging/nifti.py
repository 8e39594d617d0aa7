"""NIfTI-1 and -2 (.nii, .nii.gz): header checked before memory is taken, a fast inflate, sides from the affine."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError

from medmvl.errors import ImagingError
from medmvl.imaging.limits import check_bytes, check_deflate_ratio
from medmvl.imaging.nifti_place import place, sides_stated
from medmvl.imaging.orientation import AXIAL
from medmvl.imaging.rescale import check_rescale, rescale
from medmvl.imaging.units import AIR_BELOW, decide_units
from medmvl.imaging.volume import Units, Volume, check_finite, check_spacing

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
#: what the inflater, the header parser and the file system raise for a damaged file
_BROKEN: tuple[Any, ...] = (
    OSError, EOFError, zlib.error, isal_zlib.error, HeaderDataError, ValueError, OverflowError, KeyError, TypeError,
)  # fmt: skip
#: bytes inflated at a time; asked for more, isal works in buffers that leave the processor's cache (2.5 times slower)
_PIECE = 2**17
_GZIP_MAGIC = b"\x1f\x8b"
#: bytes between header and voxels that extensions may take
_MOST_EXTENSIONS = 2**26


def read_nifti(
    path: Path,
    *,
    units: Units | None,
    slope: float | None,
    intercept: float | None,
    already_rescaled: bool | None,
    spacing: Sequence[float] | None,
    orientation: str | None,
    max_bytes: int | None,
) -> Volume:
    """Read a NIfTI file into the standard axial view SPL (a view: nothing is interpolated).

    Args:
        slope, intercept: a rescale that the file should have had (CT-RATE's metadata csv), applied after scl_slope.
        already_rescaled: what to do if the values look as if that rescale was done: True: leave them, False: apply it
            all the same, None: ask, by an error.
        spacing: (z, y, x) mm of the axial view, instead of the header's.
        orientation: sides towards which the file's axes (k, j, i) grow, instead of the header's.

    Raises:
        ImagingError: for a truncated or foreign file, 4-D data, unknown units, absurd spacing, NaN, too large a file, or a
            header whose two orientations name other sides.
    """
    compressed = _is_gzip(path)
    try:
        with LoggingOutputSuppressor(), igzip.open(path, "rb") if compressed else path.open("rb") as stream:
            header = _read_header(stream, path)
            shape = _shape(header, path)
            dtype = _dtype(header, path)
            wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            check_bytes(wanted, path, max_bytes)
            if compressed:
                check_deflate_ratio(wanted, path.stat().st_size, path)
                stored = _inflate(stream, header, shape, dtype, path)
            else:
                stored = _map(path, header, shape, dtype, wanted)
    except _BROKEN as error:
        raise ImagingError(f"{path} is not a whole NIfTI file: {error}.") from error

    history = [f"read NIfTI{' (gzip)' if compressed else ''}, {shape[0]}x{shape[1]}x{shape[2]} {dtype}"]
    values = _apply_header_scaling(stored, header, history)
    values = _apply_given_rescale(values, slope, intercept, already_rescaled, history, path)
    try:
        check_finite(values)
    except ImagingError as error:
        raise ImagingError(f"{path}: {error}") from None
    given = slope is not None or intercept is not None or already_rescaled
    decided, reason = decide_units(values, "HU" if units is None and given else units, path)
    affine, warnings = place(header, path, shape, spacing, orientation)
    volume = Volume(
        array=values,
        units=decided,
        affine=affine,
        sides_known=orientation is not None or sides_stated(header),
        history=(*history, reason),
        warnings=warnings,
        source="nifti",
    )
    volume = volume.to_orientation(AXIAL)
    if spacing is not None:
        return volume.with_spacing(spacing)
    check_spacing(volume.spacing or (0, 0, 0))
    return volume


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(2) == _GZIP_MAGIC


def _read_header(stream: BinaryIO, path: Path) -> nib.Nifti1Header:
    first = stream.read(4)
    for order in ("<", ">"):
        size = int(np.frombuffer(first.ljust(4, b"\0"), dtype=f"{order}i4")[0])
        if size in _HEADERS:
            block = first + stream.read(size - 4)
            if len(block) < size:
                raise ImagingError(f"{path} ends inside its NIfTI header: the file is truncated.")
            # nibabel's repairs are not wanted: it would make a spacing of 0 into 1 mm.
            header = _HEADERS[size].from_fileobj(io.BytesIO(block), check=False)
            if bytes(header["magic"]).strip(b"\0")[:3] in (b"ni1", b"ni2"):
                raise ImagingError(f"{path} is the header of a .hdr/.img pair. Convert it to one .nii.gz file.")
            return header
    raise ImagingError(f"{path} is not a NIfTI file: it does not begin with a NIfTI header.")


def _shape(header: nib.Nifti1Header, path: Path) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in header.get_data_shape())
    trimmed = shape[:3] if len(shape) > 3 and all(n == 1 for n in shape[3:]) else shape
    if len(trimmed) != 3 or any(n < 1 for n in trimmed):
        raise ImagingError(
            f"{path} has shape {shape}; a volume has three axes. Select one time point or channel and save it alone."
        )
    return trimmed[0], trimmed[1], trimmed[2]


def _dtype(header: nib.Nifti1Header, path: Path) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise ImagingError(f"{path} has the unknown NIfTI data type {int(header['datatype'])}.") from None
    if dtype.kind not in "iuf":
        raise ImagingError(f"{path} holds values of type {dtype}; a volume holds real numbers.")
    return dtype


def _inflate(
    stream: BinaryIO, header: nib.Nifti1Header, shape: tuple[int, int, int], dtype: np.dtype, path: Path
) -> np.ndarray:
    """Decompress the voxels into one buffer of their exact size; returns (k, j, i)."""
    skip = _offset(header, path) - header.sizeof_hdr
    if len(stream.read(skip)) < skip:
        raise ImagingError(f"{path} ends before its voxels begin: the file is truncated.")
    buffer = np.empty(int(np.prod(shape, dtype=np.int64)), dtype=dtype)
    view = buffer.data.cast("B")
    filled = 0
    while filled < len(view):
        count = stream.readinto(view[filled : filled + _PIECE])  # type: ignore[attr-defined]
        if not count:
            raise ImagingError(f"{path} is truncated: {filled:,} of {len(view):,} bytes of voxels are there.")
        filled += count
    stream.read(1)  # reaching the end makes gzip verify its checksum
    return _native(buffer.reshape(shape[::-1]))


def _offset(header: nib.Nifti1Header, path: Path) -> int:
    """Where the voxels begin; behind the header, and extensions are small."""
    offset = int(header.get_data_offset())
    if not header.sizeof_hdr <= offset <= header.sizeof_hdr + _MOST_EXTENSIONS:
        raise ImagingError(
            f"{path} says that its voxels begin at byte {offset}, which cannot be right: damaged header."
        )
    return offset


def _map(path: Path, header: nib.Nifti1Header, shape: tuple[int, int, int], dtype: np.dtype, wanted: int) -> np.ndarray:
    offset = _offset(header, path)
    size = path.stat().st_size
    if size < offset + wanted:
        raise ImagingError(f"{path} is truncated: {max(size - offset, 0):,} of {wanted:,} bytes of voxels are there.")
    return _native(np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape[::-1]))


def _native(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.float64:
        return array.astype(np.float32)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _apply_header_scaling(stored: np.ndarray, header: nib.Nifti1Header, history: list[str]) -> np.ndarray:
    slope, intercept = header.get_slope_inter()
    if slope is None or (slope, intercept) == (1, 0):
        return stored
    history.append(f"scl_slope {slope:g} and scl_inter {intercept:g} of the header applied")
    return rescale(stored, *check_rescale(slope, intercept, "the header"))


def _apply_given_rescale(
    values: np.ndarray,
    slope: float | None,
    intercept: float | None,
    already_rescaled: bool | None,
    history: list[str],
    path: Path,
) -> np.ndarray:
    if slope is None and intercept is None:
        return values
    slope, intercept = check_rescale(1.0 if slope is None else slope, 0.0 if intercept is None else intercept, path)
    if (slope, intercept) == (1, 0):
        return values
    if already_rescaled is None:
        low = min(float(plane.min()) for plane in values)
        if low < AIR_BELOW:
            raise ImagingError(
                f"{path}: slope {slope:g} and intercept {intercept:g} are given, but the values already reach down to "
                f"{low:g}, as if they were Hounsfield units. Say already_rescaled=True to leave them as they are, or "
                "already_rescaled=False to apply the rescale all the same."
            )
    if already_rescaled:
        history.append(f"given slope {slope:g} and intercept {intercept:g} left out: already rescaled, as declared")
        return values
    history.append(f"given slope {slope:g} and intercept {intercept:g} applied")
    return rescale(values, slope, intercept)
