"""Reader for NIfTI-1 and NIfTI-2 (.nii, .nii.gz). Headers are checked before memory is allocated."""

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

from medmvl.errors import ImagingError, naming
from medmvl.imaging.formats.nifti_affine import nifti_affine, sides_stated
from medmvl.imaging.limits import check_bytes, check_deflate_ratio
from medmvl.imaging.rescale import NEGATIVE_SLOPE, check_rescale, rescale
from medmvl.imaging.units import AIR_BELOW, decide_units, doubt_hounsfield
from medmvl.imaging.volume import Units, Volume, check_finite

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
#: exceptions of the decompressor, the header parser and the file system for a damaged file
_BROKEN: tuple[Any, ...] = (
    OSError, EOFError, zlib.error, isal_zlib.error, HeaderDataError, ValueError, OverflowError, KeyError, TypeError,
)  # fmt: skip
#: bytes decompressed per call; with larger pieces isal's buffers exceed the processor's cache (measured: 2.5 times slower)
_PIECE = 2**17
_GZIP_MAGIC = b"\x1f\x8b"
#: most bytes that extensions between header and voxels, or bytes after the voxels, may take
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
        slope, intercept: a rescale that the file lacks (CT-RATE's metadata csv), applied after scl_slope.
        already_rescaled: what to do if the values look rescaled already: True: leave them, False: rescale them anyway,
            None: raise.
        spacing: (z, y, x) mm of the axial view, instead of the header's.
        orientation: sides towards which the file's axes (k, j, i) grow, instead of the header's.

    Raises:
        ImagingError: if the file is truncated, foreign, 4-D, too large, contains NaN, has unknown units or absurd
            spacing, or if its two orientations contradict each other.
    """
    header, stored, history = _read_stored(path, max_bytes)
    with naming(path):
        values, warnings = _apply_header_scaling(stored, header, history)
        values = _apply_given_rescale(values, slope, intercept, already_rescaled, history)
        check_finite(values)
    given = slope is not None or intercept is not None or already_rescaled
    if units is None and given:
        doubt = doubt_hounsfield(values, path)
        warnings += [doubt] if doubt else []
    decided, reason = decide_units(values, "HU" if units is None and given else units, path, takes_rescale=True)
    i, j, k = stored.shape[::-1]
    affine, found = nifti_affine(header, path, (i, j, k), spacing, orientation)
    volume = Volume(
        array=values,
        units=decided,
        affine=affine,
        sides_known=orientation is not None or sides_stated(header),
        history=(*history, reason),
        warnings=(*warnings, *found),
        source="nifti",
    )
    with naming(path):
        return volume.to_axial(spacing)


def _read_stored(path: Path, max_bytes: int | None) -> tuple[nib.Nifti1Header, np.ndarray, list[str]]:
    """Return the header, the stored values (k, j, i) in native byte order, and the history's first line."""
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
    if dtype.itemsize > 4 and dtype.kind == "f":
        history.append(f"{dtype} values rounded to float32")
    return header, stored, history


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
    """Decompress the voxels into one buffer of their exact size and return them as (k, j, i)."""
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
    rest = 0
    while piece := stream.read(_PIECE):  # reaching the end makes gzip verify its checksum
        rest += len(piece)
        _check_rest(rest, shape, dtype, path)
    return _native(buffer.reshape(shape[::-1]))


def _offset(header: nib.Nifti1Header, path: Path) -> int:
    """Return the offset of the voxels in bytes, or raise if it is implausible."""
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
    _check_rest(size - offset - wanted, shape, dtype, path)
    return _native(np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape[::-1]))


def _check_rest(rest: int, shape: tuple[int, int, int], dtype: np.dtype, path: Path) -> None:
    """Raise if as many bytes follow the voxels as a slice has: the header then states too few of them."""
    if rest >= min(shape[0] * shape[1] * dtype.itemsize, _MOST_EXTENSIONS):
        raise ImagingError(
            f"{path} has at least {rest:,} bytes after its voxels, a slice or more: the shape in its header is wrong."
        )


def _native(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        with np.errstate(over="ignore"):  # infinite values are refused afterwards
            return array.astype(np.float32)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _apply_header_scaling(
    stored: np.ndarray, header: nib.Nifti1Header, history: list[str]
) -> tuple[np.ndarray, list[str]]:
    """Return values (k, j, i) after scl_slope and scl_inter, and warnings.

    A slope of 0 or NaN means "no scaling" (NIfTI-1 standard, nibabel).
    """
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isinf(slope):
        raise ImagingError(f"scl_slope {slope:g} of the header cannot be right.")
    if slope == 0 or np.isnan(slope):
        ignored = np.isfinite(intercept) and intercept != 0
        note = f"scl_inter {intercept:g} of the header not applied, because scl_slope is {slope:g}"
        return stored, [note] if ignored else []
    if (slope, intercept) == (1, 0):
        return stored, []
    check_rescale(slope, intercept, "the header")
    history.append(f"scl_slope {slope:g} and scl_inter {intercept:g} of the header applied")
    return rescale(stored, slope, intercept), [NEGATIVE_SLOPE] if slope < 0 else []


def _apply_given_rescale(
    values: np.ndarray,
    slope: float | None,
    intercept: float | None,
    already_rescaled: bool | None,
    history: list[str],
) -> np.ndarray:
    """Apply the caller's slope and intercept to (k, j, i) values, unless they are rescaled already."""
    if slope is None and intercept is None:
        return values
    slope, intercept = check_rescale(
        1.0 if slope is None else slope, 0.0 if intercept is None else intercept, "the given rescale"
    )
    if (slope, intercept) == (1, 0):
        return values
    if already_rescaled is None:
        low = min(float(plane.min()) for plane in values)
        if low < AIR_BELOW:
            raise ImagingError(
                f"slope {slope:g} and intercept {intercept:g} are given, but the values already reach down to "
                f"{low:g}, as if they were Hounsfield units. Say already_rescaled=True to leave them as they are, or "
                "already_rescaled=False to apply the rescale all the same."
            )
    if already_rescaled:
        history.append(f"given slope {slope:g} and intercept {intercept:g} left out: already rescaled, as declared")
        return values
    history.append(f"given slope {slope:g} and intercept {intercept:g} applied")
    rescaled = rescale(values, slope, intercept)
    if already_rescaled is None and max(float(plane.max()) for plane in rescaled) < AIR_BELOW:
        raise ImagingError(
            f"slope {slope:g} and intercept {intercept:g} are given, but no value would then be above {AIR_BELOW:g}, as if "
            "they were Hounsfield units already. Say already_rescaled=True to leave them as they are, or "
            "already_rescaled=False to apply the rescale all the same."
        )
    return rescaled
