"""Reader for numpy files: .npy (memory-mapped) and .npz. They state neither units nor orientation."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medmvl.errors import ImagingError, naming
from medmvl.imaging.limits import check_bytes, check_ratio
from medmvl.imaging.units import decide_units
from medmvl.imaging.volume import Units, Volume, check_finite

#: exceptions of numpy and zipfile for damaged files; numpy parses headers as Python source, hence the tokenizer
_DAMAGED = (
    ValueError, EOFError, OSError, SyntaxError, TypeError, KeyError, OverflowError, RuntimeError, MemoryError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def load_array(path: Path, max_bytes: int | None = None) -> np.ndarray:
    """Return the array (any shape) of a .npy file as a read-only memory map, or the only array of a .npz file.

    Raises:
        ImagingError: if the file is damaged, holds objects (pickle), several arrays, or more than `max_bytes`.
    """
    try:
        if path.suffix.lower() == ".npz":
            return _load_npz(path, max_bytes)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        surplus = path.stat().st_size - array.offset - array.nbytes
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise ImagingError(f"{path} is not a whole numpy file of plain numbers: {reason}.") from error
    if surplus:
        raise ImagingError(
            f"{path} holds {surplus:,} bytes after its array, as if several had been saved into one file."
        )
    check_bytes(array.nbytes, path, max_bytes)
    return array


def read_array_volume(
    path: Path,
    *,
    units: Units | None,
    spacing: Sequence[float] | None,
    orientation: str | None,
    max_bytes: int | None,
) -> Volume:
    """Read an array of shape (D, H, W) or (1, D, H, W).

    Without `units`, values that reach below -200 are Hounsfield units, as in MedM-VL's .npy files; uint8 values and
    values within 0..1 are arbitrary; anything else is ambiguous and raises.
    """
    array = load_array(path, max_bytes)
    history = [f"read {path.suffix.lower()[1:]} array of {array.dtype}"]
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
        history.append("leading axis of length 1 dropped")
    if array.ndim != 3:
        raise ImagingError(
            f"{path} holds an array of shape {tuple(array.shape)}; a volume is [D, H, W] or [1, D, H, W]. "
            "Select one time point or channel and save it again."
        )
    if array.dtype.kind not in "iufb" or 0 in array.shape:
        raise ImagingError(f"{path} holds an array of shape {tuple(array.shape)} and dtype {array.dtype}: no volume.")
    with naming(path):
        check_finite(array)
    decided, reason = decide_units(array, units, path)
    return Volume.from_array(
        array, spacing=spacing, units=decided, orientation=orientation, source="npy", history=[*history, reason]
    )


def _load_npz(path: Path, max_bytes: int | None) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        wanted = sum(member.file_size for member in members)
        check_bytes(wanted, path, max_bytes)
        check_ratio(wanted, sum(member.compress_size for member in members), path)
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        if len(names) != 1:
            raise ImagingError(f"{path} holds {len(names)} arrays ({', '.join(names[:8])}); a volume file holds one.")
        return archive[names[0]]
