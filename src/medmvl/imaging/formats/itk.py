"""Reader for NRRD and MetaImage (.nrrd, .nhdr, .mha, .mhd) through the optional package SimpleITK."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medmvl.errors import ImagingError, counted, naming, require
from medmvl.imaging.decoder import DECODER, DecoderError
from medmvl.imaging.limits import check_bytes, check_ratio
from medmvl.imaging.units import decide_units
from medmvl.imaging.volume import Units, Volume, check_finite


def read_itk(path: Path, *, units: Units | None, spacing: Sequence[float] | None, max_bytes: int | None) -> Volume:
    """Read a volume through SimpleITK into the standard axial view SPL.

    Raises:
        MissingExtraError: if SimpleITK is not installed (extra "itk").
        ImagingError: if the file is damaged, has not three axes, contains NaN, or its units are unknown.
    """
    if importlib.util.find_spec("SimpleITK") is None:
        require("SimpleITK", "itk")
    try:
        header = DECODER.itk_header(path.resolve())
        voxels = math.prod(header["size"]) * header["components"]
        check_bytes(voxels * 2, path, max_bytes)  # at least 2 bytes per voxel for all but 8-bit pictures
        if path.suffix.lower() in (".mha", ".nrrd"):  # the header of .mhd and .nhdr is a file of its own
            check_ratio(voxels, path.stat().st_size, path)
        if 0 in header["size"]:
            raise ImagingError(f"{path} is empty: its size is {tuple(header['size'])}.")
        if len(header["size"]) != 3 or header["components"] != 1:
            raise ImagingError(
                f"{path} has size {tuple(header['size'])} and {counted(header['components'], 'value')} per voxel; a volume has three "
                "axes and one value."
            )
        array = DECODER.itk_voxels(path.resolve(), voxels)
    except DecoderError as error:
        raise ImagingError(f"{path} cannot be read by SimpleITK: {error}.") from error
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(header["direction"], (3, 3)) * np.asarray(header["spacing"])
    affine[:3, 3] = header["origin"]
    affine = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)[:, [2, 1, 0, 3]]  # ITK's LPS -> RAS; (i, j, k) -> (k, j, i)
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):  # infinite values are refused below
            array = array.astype(np.float32)
    with naming(path):
        check_finite(array)
    decided, reason = decide_units(array, units, path)
    volume = Volume(
        array, decided, affine, history=(f"read {path.suffix[1:].lower()} of {array.dtype}", reason), source="itk"
    )
    with naming(path):
        return volume.to_axial(spacing)
