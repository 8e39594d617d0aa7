"""Where a NIfTI file says that its voxels lie: sform or qform, units, and what to do when they are not to be believed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from medmvl.errors import ImagingError
from medmvl.imaging.orientation import affine_of, code_of, obliquity

#: mm per unit of the header's xyzt_units, whose lowest three bits are the code (NIfTI-1: 1 metre, 2 mm, 3 micron)
_MM = {1: 1000.0, 3: 0.001}
#: voxel sizes of sform and qform that differ by more than this share are worth a warning
_SAME_SIZE = 0.01


def place(
    header: nib.Nifti1Header,
    path: Path,
    shape: tuple[int, int, int],
    spacing: Sequence[float] | None,
    orientation: str | None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the affine of the (k, j, i) array in mm, and warnings.

    The sform goes before the qform, and that before the bare voxel sizes, as everywhere.

    Args:
        shape: (i, j, k).
        spacing: what the caller declares; the header's need not be usable then.
        orientation: sides of (k, j, i) that the caller declares, instead of the header's.

    Raises:
        ImagingError: if no usable voxel size is stated and none is declared, or sform and qform name other sides.
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
    """Say whether the header states patient sides at all, and in numbers that can be used."""
    form, _ = _forms(header)
    return (int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0) and form is not None and _usable(form)


def _forms(header: nib.Nifti1Header) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The affine (4, 4) of (i, j, k) that counts, and the qform where both are stated."""
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
    """Compare the two statements about one scan.

    Raises:
        ImagingError: if they name other sides.
    """
    sides = [code_of(form) for form in (sform, qform)]
    if sides[0] != sides[1]:
        raise ImagingError(
            f"{path}: sform and qform name other sides for the axes (i, j, k): {sides[0]} and {sides[1]}. Left and right "
            f"cannot be told. Say orientation={sides[0][::-1]!r} or orientation={sides[1][::-1]!r} (for k, j, i), "
            "or save the file with one of them."
        )
    sizes = [np.linalg.norm(form[:3, :3], axis=0) for form in (sform, qform)]
    if np.abs(sizes[0] / sizes[1] - 1).max() <= _SAME_SIZE:
        return []
    shown = ["x".join(f"{mm:.4g}" for mm in size[::-1]) for size in sizes]
    return [f"sform and qform state other voxel sizes, {shown[0]} and {shown[1]} mm (k, j, i); the sform's are used"]
