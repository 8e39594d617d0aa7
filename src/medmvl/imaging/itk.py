"""NRRD and MetaImage (.nrrd, .nhdr, .mha, .mhd) through SimpleITK, an optional package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medmvl.errors import ImagingError, require
from medmvl.imaging.limits import check_bytes
from medmvl.imaging.orientation import AXIAL
from medmvl.imaging.units import decide_units
from medmvl.imaging.volume import Units, Volume, check_finite, check_spacing


def read_itk(path: Path, *, units: Units | None, spacing: Sequence[float] | None, max_bytes: int | None) -> Volume:
    """Read a volume that SimpleITK can read, into the standard axial view SPL.

    Raises:
        MissingExtraError: if SimpleITK is not installed (extra "itk").
        ImagingError: for a damaged file, other than three axes, unknown units, NaN.
    """
    sitk = require("SimpleITK", "itk")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        # 8 bytes is the widest voxel; the exact type does not change who is refused by more than that
        check_bytes(
            int(np.prod(reader.GetSize(), dtype=np.int64)) * reader.GetNumberOfComponents() * 2, path, max_bytes
        )
        image = reader.Execute()
    except RuntimeError as error:
        raise ImagingError(f"{path} cannot be read by SimpleITK: {' '.join(str(error).split())[-200:]}") from error
    array = sitk.GetArrayFromImage(image)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ImagingError(f"{path} has shape {array.shape}; a volume has three axes and one value per voxel.")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    affine = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)[:, [2, 1, 0, 3]]  # ITK's LPS -> RAS; (i, j, k) -> (k, j, i)
    try:
        check_finite(array)
    except ImagingError as error:
        raise ImagingError(f"{path}: {error}") from None
    decided, reason = decide_units(array, units, path)
    volume = Volume(
        array, decided, affine, history=(f"read {path.suffix[1:].lower()} of {array.dtype}", reason), source="itk"
    ).to_orientation(AXIAL)
    if spacing is not None:
        return volume.with_spacing(spacing)
    check_spacing(volume.spacing or (0, 0, 0))
    return volume
