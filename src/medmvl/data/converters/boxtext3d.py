"""Boxes in volumes: the box of a mask in patient directions, and its text in M3D's form."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel
import numpy as np
from numpy.typing import NDArray


def mask_box(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> list[float] | None:
    """Return [x1, y1, z1, x2, y2, z2] around the true voxels, or None for an empty mask.

    Coordinates are shares of the volume from 0 to 1: x grows to the patient's left, y to the back, z to the head (DICOM's
    directions), whatever the order and the signs of the array's axes.

    Args:
        mask: (I, J, K).
        affine: (4, 4), voxel index to RAS millimeters, as nibabel gives it.
    """
    orientation = nibabel.orientations.io_orientation(affine)
    low, high = [0.0] * 3, [1.0] * 3
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not hit.size:
            return None
        first, last = float(hit[0]) / mask.shape[axis], float(hit[-1] + 1) / mask.shape[axis]
        direction, sign = int(orientation[axis, 0]), orientation[axis, 1]
        # RAS grows to the right and to the front; x and y here grow to the left and to the back.
        if (sign > 0) == (direction < 2):
            first, last = 1 - last, 1 - first
        low[direction], high[direction] = first, last
    return [*low, *high]


def box_text_3d(box: Sequence[float]) -> str:
    """Return a box as M3D writes it: six shares with three decimals between its two box tokens.

    >>> box_text_3d([0, 0.25, 0.5, 0.125, 0.5, 1])
    '<bx_start>[0.000, 0.250, 0.500, 0.125, 0.500, 1.000]<bx_end>'
    """
    return "<bx_start>[" + ", ".join(f"{side:.3f}" for side in box) + "]<bx_end>"
