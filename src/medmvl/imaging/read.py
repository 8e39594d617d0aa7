"""`read_image` and `read_volume`: look at the first bytes of a file, not at its name, and call the right reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from medmvl.errors import ImagingError
from medmvl.files import PathLike
from medmvl.imaging.arrays import read_array_volume
from medmvl.imaging.dicom import looks_like_dicom
from medmvl.imaging.dicom_image import read_dicom_image
from medmvl.imaging.dicom_series import Gaps, read_dicom_volume
from medmvl.imaging.image import Image
from medmvl.imaging.itk import read_itk
from medmvl.imaging.nifti import read_nifti
from medmvl.imaging.pictures import read_array_image, read_picture
from medmvl.imaging.volume import Units, Volume

_NIFTI_SIZES = (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c", b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
Kind = Literal["dicom", "numpy", "nifti", "itk", "picture"]


def read_image(path: PathLike, *, frame: int | None = None, max_bytes: int | None = None) -> Image:
    """Read a 2D image: PNG, JPEG, TIFF, BMP, a DICOM file, or a numpy array.

    Args:
        path: a file.
        frame: which frame of a multi-frame DICOM or TIFF file, from 0; needed where there are several.
        max_bytes: limit for the decoded size, instead of 4 GiB.

    Raises:
        ImagingError: in one sentence, if the file is missing, truncated, foreign, or has no pixels.
    """
    file = _existing(path)
    if file.is_dir():
        raise ImagingError(f"{file} is a folder; an image is a file. For a DICOM series use read_volume.")
    kind = sniff(file)
    if kind == "dicom":
        return read_dicom_image(file, frame, max_bytes)
    if kind == "numpy":
        return read_array_image(file, max_bytes)
    if kind in ("nifti", "itk"):
        raise ImagingError(f"{file} is a volume, not an image. Read it with read_volume.")
    return read_picture(file, frame, max_bytes)


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
    """Read a volume into Hounsfield units (or declared arbitrary ones) in the standard axial view "SPL".

    Args:
        path: a DICOM series folder, an enhanced multi-frame DICOM file, .nii, .nii.gz, .npy, .npz, .nrrd or .mha.
        units: "HU" or "arbitrary", where the file does not tell; None: decide from the file and its values, or ask.
        spacing: (z, y, x) mm, where the file has none or a wrong one.
        orientation: sides of an array file's axes (D, H, W), e.g. "SPL"; of a NIfTI file's (k, j, i) where its header is
            wrong or contradicts itself. Other files know their own.
        slope, intercept: a rescale to HU that a NIfTI file lacks (CT-RATE: from its metadata csv).
        already_rescaled: the answer to "the values look rescaled already": True leave, False apply.
        series: which DICOM series of a folder with several: its UID (or the end of it), "largest", "thinnest",
            "axial", "coronal" or "sagittal".
        gaps: missing or irregular slices of a series: "refuse", "fill" (interpolate), or "keep" (as if regular).
        max_bytes: limit for the decoded size, instead of 4 GiB (or the environment variable MEDMVL_MAX_BYTES).

    Raises:
        ImagingError: in one sentence, naming the file and the remedy.
    """
    file = _existing(path)
    kind: Kind = "dicom" if file.is_dir() else sniff(file)
    _refuse_foreign_options(kind, file, orientation=orientation, slope=slope, intercept=intercept, series=series)
    if kind == "dicom":
        return read_dicom_volume(file, units=units, spacing=spacing, series=series, gaps=gaps, max_bytes=max_bytes)
    if kind == "numpy":
        return read_array_volume(file, units=units, spacing=spacing, orientation=orientation, max_bytes=max_bytes)
    if kind == "itk":
        return read_itk(file, units=units, spacing=spacing, max_bytes=max_bytes)
    if kind == "nifti":
        return read_nifti(
            file,
            units=units,
            slope=slope,
            intercept=intercept,
            already_rescaled=already_rescaled,
            spacing=spacing,
            orientation=orientation,
            max_bytes=max_bytes,
        )
    raise ImagingError(
        f"{file} is not a volume that can be read. Known: a DICOM series folder, an enhanced DICOM file, .nii, "
        ".nii.gz, .npy, .npz, .nrrd, .mha."
    )


def sniff(path: Path) -> Kind:
    """Return the kind of a file by its first bytes.

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
    file = Path(path)
    if not file.exists():
        raise ImagingError(f"{file} does not exist.")
    return file


def _refuse_foreign_options(kind: Kind, file: Path, **options: object) -> None:
    """An option that would be ignored is a misunderstanding, and is said so."""
    allowed = {"dicom": {"series"}, "numpy": {"orientation"}, "nifti": {"slope", "intercept", "orientation"}}.get(
        kind, set()
    )
    for name, value in options.items():
        if value is not None and name not in allowed:
            raise ImagingError(f"{file} is read as {kind}, for which {name}= has no meaning. Leave it out.")
