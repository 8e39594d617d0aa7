"""`read_image` and `read_volume`, which select the reader by the first bytes of a file, not by its name."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, get_args

import numpy as np

from medmvl.errors import DataError, ImagingError, naming, require_path, shown
from medmvl.files import PathLike
from medmvl.imaging.dicom import Gaps, looks_like_dicom, read_dicom_image, read_dicom_volume
from medmvl.imaging.formats import read_array_image, read_array_volume, read_itk, read_nifti, read_picture
from medmvl.imaging.image import Image
from medmvl.imaging.volume import Units, Volume
from medmvl.remote import RemotePath, is_url, local_copy

_NIFTI_SIZES = (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c", b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
Options = ParamSpec("Options")
Read = TypeVar("Read", Image, Volume)
#: Volumes that can be read, for messages.
_KNOWN = "a DICOM series folder, an enhanced DICOM file, .nii, .nii.gz, .npy, .npz, .nrrd, .mha"
#: What to do with a volume that was given as an image, for each way to give it.
_AS_VOLUME = "Give a volume or a folder with a DICOM series by --volume, the key `image3d` of a record, or read_volume."
Kind = Literal["dicom", "numpy", "nifti", "itk", "picture"]


def of_local_copy(
    read: Callable[Concatenate[PathLike, Options], Read],
) -> Callable[Concatenate[PathLike, Options], Read]:
    """Let a reader of files read the local copy of a `RemotePath`; messages name the URL instead of the copy."""

    @wraps(read)
    def reader(path: PathLike, *args: Options.args, **options: Options.kwargs) -> Read:
        if not isinstance(path, RemotePath):
            return read(path, *args, **options)
        copy = local_copy(path)
        try:
            return read(copy, *args, **options)
        except ImagingError as error:
            raise type(error)(str(error).replace(str(copy), str(path))) from error

    return reader


@of_local_copy
def read_image(path: PathLike, *, frame: int | None = None, max_bytes: int | None = None) -> Image:
    """Read a 2D image: PNG, JPEG, TIFF, BMP, a DICOM file, or a numpy array.

    Args:
        path: a file.
        frame: index of the frame of a multi-frame DICOM or TIFF file, from 0; required if there are several.
        max_bytes: limit of the decoded size, instead of 4 GiB (or the environment variable MEDMVL_MAX_BYTES).

    Raises:
        ImagingError: if the file is missing, truncated, of an unknown format, or has no pixels.
    """
    file = _existing(path)
    _check_kinds(frame=frame, max_bytes=max_bytes)
    if file.is_dir():
        raise ImagingError(f"{file} is a folder; an image is a file. {_AS_VOLUME}")
    kind = sniff(file)
    if kind == "dicom":
        return read_dicom_image(file, frame, max_bytes)
    if kind == "numpy":
        return read_array_image(file, max_bytes)
    if kind in ("nifti", "itk"):
        raise ImagingError(f"{file} is a volume, not an image. {_AS_VOLUME}")
    return read_picture(file, frame, max_bytes)


@of_local_copy
def read_volume(
    path: PathLike,
    *,
    units: Units | None = None,
    spacing: Sequence[float] | None = None,
    orientation: str | None = None,
    slope: float | None = None,
    intercept: float | None = None,
    already_rescaled: bool | None = None,
    series: str | None = None,
    gaps: Gaps = "refuse",
    max_bytes: int | None = None,
) -> Volume:
    """Read a volume in Hounsfield units, or in arbitrary units if declared, into the standard axial view "SPL".

    Args:
        path: a DICOM series folder, an enhanced multi-frame DICOM file, .nii, .nii.gz, .npy, .npz, .nrrd or .mha.
        units: "HU" or "arbitrary"; None: decided from the file and its values, raises if they are ambiguous.
        spacing: (z, y, x) mm, if the file has none or a wrong one.
        orientation: sides of an array file's axes (D, H, W), e.g. "SPL", or of a NIfTI file's axes (k, j, i) if its
            header is wrong or contradicts itself.
        slope, intercept: a rescale to HU that a NIfTI file lacks (CT-RATE: from its metadata csv).
        already_rescaled: what to do with values that look rescaled already: True: leave them, False: rescale them.
        series: the DICOM series to read from a folder with several: its UID (or the end of it), "largest", "thinnest",
            "axial", "coronal" or "sagittal".
        gaps: missing or irregular slices of a series: "refuse", "fill" (interpolate), or "keep" (as if regular).
        max_bytes: limit of the decoded size, instead of 4 GiB (or the environment variable MEDMVL_MAX_BYTES).

    Raises:
        ImagingError: if the file cannot be read or is ambiguous; the message names the file and the remedy.
    """
    file = _existing(path)
    spacing = _checked_spacing(spacing)
    _check_kinds(
        slope=slope, intercept=intercept, already_rescaled=already_rescaled, series=series, max_bytes=max_bytes
    )
    if gaps not in get_args(Gaps):
        raise ImagingError(f"gaps={gaps!r} is not known. Use {', '.join(map(repr, get_args(Gaps)))}.")
    kind: Kind = "dicom" if file.is_dir() else sniff(file)
    _refuse_foreign_options(kind, file, orientation=orientation, slope=slope, intercept=intercept, series=series)
    if gaps not in get_args(Gaps):
        raise ImagingError(f"gaps={gaps!r} is not known. Use {', '.join(map(repr, get_args(Gaps)))}.")
    common: dict[str, Any] = {"units": units, "spacing": spacing, "max_bytes": max_bytes}
    if kind == "dicom":
        return read_dicom_volume(file, series=series, gaps=gaps, **common)
    if kind == "numpy":
        with naming(file):  # of the volume itself, which knows no file
            return read_array_volume(file, orientation=orientation, **common)
    if kind == "itk":
        with naming(file):  # of the volume itself, which knows no file
            return read_itk(file, **common)
    if kind == "nifti":
        rescale: dict[str, Any] = {"slope": slope, "intercept": intercept, "already_rescaled": already_rescaled}
        return read_nifti(file, orientation=orientation, **rescale, **common)
    raise ImagingError(f"{file} is not a volume that can be read. Known: {_KNOWN}.")


#: Argument -> the types that it takes, and how a message names them.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "frame": ((int, np.integer), "a whole number from 0"),
    "max_bytes": ((int, np.integer), "a number of bytes"),
    "slope": ((int, float, np.integer, np.floating), "a number"),
    "intercept": ((int, float, np.integer, np.floating), "a number"),
    "already_rescaled": ((bool,), "True or False"),
    "series": ((str,), "a UID (or its end) or a word such as 'largest'"),
}


def _check_kinds(**arguments: object) -> None:
    """Raise if an argument that is not None has a type that it does not take; a truth value is no number."""
    for name, value in arguments.items():
        types, words = _KINDS[name]
        if value is None or (isinstance(value, types) and not (isinstance(value, bool) and bool not in types)):
            continue
        raise ImagingError(f"{name} must be {words}, not {shown(value)}.")


def _checked_spacing(spacing: object) -> tuple[float, float, float] | None:
    """Return (z, y, x) in mm; raise if it is not three numbers. Whether they are plausible is checked with the file."""
    if spacing is None:
        return None
    try:
        z, y, x = (float(value) for value in spacing)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ImagingError(f"spacing must be three numbers (z, y, x) in mm, not {shown(spacing)}.") from None
    return z, y, x


def sniff(path: Path) -> Kind:
    """Return the kind of a file, determined by its first bytes.

    Raises:
        ImagingError: if the file is empty or cannot be opened.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(512)
    except OSError as error:
        raise ImagingError(f"{path} cannot be opened: {error.strerror}.") from error
    if not head:
        raise ImagingError(f"{path} is empty.")
    if head[:6] == b"\x93NUMPY" or (head[:2] == b"PK" and path.suffix.lower() == ".npz"):
        return "numpy"
    if head[:2] == b"\x1f\x8b" or head[:4] in _NIFTI_SIZES:
        return "itk" if path.name.lower().endswith((".mha", ".nrrd")) else "nifti"
    if head[:4] == b"NRRD" or head[:10] == b"ObjectType" or path.suffix.lower() in (".mha", ".mhd", ".nhdr"):
        return "itk"
    return "dicom" if looks_like_dicom(head) else "picture"


def _existing(path: PathLike) -> Path:
    """Return the path of a regular file or a folder; anything else is refused before it is opened.

    Opening a pipe or a device could block forever.
    """
    if is_url(path):
        raise ImagingError(f"{shown(path)} is a URL. Only files below a root that is given as a URL are fetched.")
    try:
        file = Path(require_path(path, "file"))
    except DataError as error:
        raise ImagingError(str(error)) from None
    try:
        mode = os.stat(file).st_mode  # noqa: PTH116 - Path.stat of Python 3.11 and 3.13 differ for NUL bytes
    except FileNotFoundError:
        state = "is a broken link" if file.is_symlink() else "does not exist"
        raise ImagingError(f"{file} {state}.") from None
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long or contains NUL
        reason = error.strerror if isinstance(error, OSError) else "its name contains a NUL character"
        raise ImagingError(f"{str(file)[:300]!r} cannot be opened: {reason}.") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ImagingError(f"{file} is neither a file nor a folder (a pipe, socket or device).")
    return file


def _refuse_foreign_options(kind: Kind, file: Path, **options: object) -> None:
    """Raise if an option does not apply to this kind of file."""
    allowed = {"dicom": {"series"}, "numpy": {"orientation"}, "nifti": {"slope", "intercept", "orientation"}}.get(
        kind, set()
    )
    for name, value in options.items():
        if value is not None and name not in allowed:
            raise ImagingError(f"{file} is read as {kind}, for which {name}= has no meaning. Leave it out.")
