"""Patient orientation: three-letter codes, and flips and permutations between them.

A code gives, for each of the array axes (D, H, W), the patient side towards which the index increases: R/L, A/P and S/I
are the patient's right and left, front and back, head and feet. The standard axial view of radiology (first slice at the feet,
first row at the front, first column at the patient's right) is "SPL". World coordinates are nibabel's RAS+ in mm.
"""

from __future__ import annotations

import numpy as np

from medmvl.errors import ImagingError

AXIAL = "SPL"
_SIDES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def check_code(code: str) -> str:
    """Return `code` in capitals, or raise if it does not contain each of the three directions once.

    Raises:
        ImagingError: for anything but one of R/L, one of A/P and one of S/I in some order.
    """
    letters = str(code).upper()
    if len(letters) != 3 or any(c not in _SIDES for c in letters) or len({_SIDES[c][0] for c in letters}) != 3:
        raise ImagingError(
            f"Orientation {code!r} is not known. Give three letters, one each of R/L, A/P and S/I, naming the side "
            f"towards which the array axes (D, H, W) grow; the standard axial view is {AXIAL!r}."
        )
    return letters


def affine_of(code: str, spacing: tuple[float, float, float], shape: tuple[int, ...]) -> np.ndarray:
    """Return the 4x4 affine, array index (d, h, w) -> RAS+ mm, of an array centered at the origin.

    Args:
        code: orientation of the array axes.
        spacing: mm per step along the array axes.
        shape: size of the array axes.
    """
    affine = np.zeros((4, 4))
    for axis, letter in enumerate(check_code(code)):
        world, sign = _SIDES[letter]
        affine[world, axis] = sign * spacing[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape[:3]) - 1) / 2)
    affine[3, 3] = 1.0
    return affine


def code_of(affine: np.ndarray) -> str:
    """Return the code closest to the axes of `affine` (4, 4), as assigned by nibabel.

    Raises:
        ImagingError: if an axis has no direction (a column of zeros, or two axes that run the same way).
    """
    import nibabel as nib  # at first use: geometries, which need no file, are read without it

    codes = nib.orientations.aff2axcodes(affine)
    if any(code is None for code in codes):
        raise ImagingError("The orientation matrix is degenerate: an axis has no direction of its own.")
    return "".join(codes)


def obliquity(affine: np.ndarray) -> float:
    """Return the largest angle in degrees between an array axis of `affine` (4, 4) and its nearest patient axis."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.clip(np.abs(columns).max(axis=0), 0.0, 1.0)
    return float(np.degrees(np.arccos(cosines)).max())


def reorient(array: np.ndarray, affine: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a view of `array` (D, H, W) in the orientation `code`, and its affine (4, 4). No data are copied."""
    import nibabel as nib

    start = nib.orientations.axcodes2ornt(tuple(code_of(affine)))
    end = nib.orientations.axcodes2ornt(tuple(check_code(code)))
    transform = nib.orientations.ornt_transform(start, end)
    view = nib.orientations.apply_orientation(array, transform)
    return view, affine @ nib.orientations.inv_ornt_aff(transform, array.shape)
