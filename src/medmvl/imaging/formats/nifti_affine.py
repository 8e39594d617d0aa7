"""The affine of a NIfTI file: sform, qform or voxel sizes, with checks for contradictions and unusable values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from medmvl.errors import ImagingError
from medmvl.imaging.orientation import affine_of, code_of, obliquity

#: mm per unit of the header's xyzt_units, whose lowest three bits are the code (NIfTI-1: 1 meter, 2 mm, 3 micron)
_MM = {1: 1000.0, 3: 0.001}
#: relative difference between the voxel sizes of sform and qform from which a warning is given
_SAME_SIZE = 0.01


def nifti_affine(
    header: nib.Nifti1Header,
    path: Path,
    shape: tuple[int, int, int],
    spacing: Sequence[float] | None,
    orientation: str | None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the affine (4, 4) of the (k, j, i) array in mm, and warnings.

    The sform takes precedence over the qform, and the qform over the bare voxel sizes, as in nibabel.

    Args:
        shape: (i, j, k).
        spacing: declared by the caller; the header's spacing may then be unusable.
        orientation: sides of the axes (k, j, i) declared by the caller, used instead of the header's.

    Raises:
        ImagingError: if the header states no usable voxel size and none is declared, or if sform and qform contradict
            each other about the sides.
    """
    form, other = _forms(header)
    usable = form is not None and _usable(form)
    warnings: list[str] = []
    if not usable:
        if spacing is None:
            raise ImagingError(
                f"{path}: the header states no usable voxel size (its affine or pixdim has zeros or no numbers). "
                "Give the true spacing with spacing=(z, y, x) in mm."
            )
        form, other = np.diag([-1.0, -1.0, 1.0, 1.0]), None
        warnings.append("the header's affine is not usable: patient sides are assumed")
    assert form is not None
    turned = form[:, [2, 1, 0, 3]].copy()
    turned[:3] *= _MM.get(int(header["xyzt_units"]) % 8, 1.0)
    if orientation is not None:
        lengths = np.linalg.norm(turned[:3, :3], axis=0)
        return affine_of(orientation, (lengths[0], lengths[1], lengths[2]), shape[::-1]), ()
    if usable and not sides_stated(header):
        warnings.append("the header states no orientation (sform and qform codes 0): patient sides are assumed")
    if usable and (angle := obliquity(form)) > 1:
        warnings.append(f"oblique by {angle:.1f} degrees to the patient axes")
    if other is not None and _usable(other):
        warnings += _compared(form, other, path)
    return turned, tuple(warnings)


def sides_stated(header: nib.Nifti1Header) -> bool:
    """Return whether the header states patient sides in usable numbers."""
    form, _ = _forms(header)
    return (int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0) and form is not None and _usable(form)


def _forms(header: nib.Nifti1Header) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the affine (4, 4) of (i, j, k) that takes precedence, and the qform if both are stated."""
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64) if int(header["qform_code"]) > 0 else None
    except (HeaderDataError, ValueError, ZeroDivisionError):  # a quaternion that is none
        qform = None
    if int(header["sform_code"]) > 0:
        return np.asarray(header.get_sform(), dtype=np.float64), qform
    if qform is not None:
        return qform, None
    sizes = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    return np.diag([-sizes[0], sizes[1], sizes[2], 1.0]), None


def _usable(form: np.ndarray) -> bool:
    lengths = np.linalg.norm(form[:3, :3], axis=0)
    return bool(np.isfinite(form).all() and (lengths > 0).all() and abs(np.linalg.det(form[:3, :3] / lengths)) > 1e-3)


def _compared(sform: np.ndarray, qform: np.ndarray, path: Path) -> list[str]:
    """Return warnings about voxel sizes that differ between sform and qform, both (4, 4).

    Raises:
        ImagingError: if they name different patient sides.
    """
    sides = [code_of(form) for form in (sform, qform)]
    if sides[0] != sides[1]:
        raise ImagingError(
            f"{path}: sform and qform name different sides for the axes (i, j, k): {sides[0]} and {sides[1]}. Left and right "
            f"cannot be told. Say orientation={sides[0][::-1]!r} or orientation={sides[1][::-1]!r} (for k, j, i), "
            "or save the file with one of them."
        )
    sizes = [np.linalg.norm(form[:3, :3], axis=0) for form in (sform, qform)]
    if np.abs(sizes[0] / sizes[1] - 1).max() <= _SAME_SIZE:
        return []
    shown = ["x".join(f"{mm:.4g}" for mm in size[::-1]) for size in sizes]
    return [f"sform and qform state other voxel sizes, {shown[0]} and {shown[1]} mm (k, j, i); the sform's are used"]
