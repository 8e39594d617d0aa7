"""Drawing of axial, coronal and sagittal slices at true aspect ratio, with the patient side at every edge.

Contact sheets, reports and the web page draw slices with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import PIL.Image

from medmvl.imaging.orientation import AXIAL
from medmvl.imaging.preprocessing.windows import WINDOWS, Window
from medmvl.imaging.volume import Volume

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
#: orientation in which the first array axis runs through the slices of a plane, rows go down and columns to the
#: right of the picture: the patient's right (axial, coronal) or front (sagittal) is at the left edge, as is customary
_VIEWS: dict[Plane, str] = {"axial": AXIAL, "coronal": "PIL", "sagittal": "LIP"}
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


@dataclass(frozen=True, eq=False)
class PlanePicture:
    """A drawn slice.

    Attributes:
        pixels: (rows, columns) uint8, square pixels.
        plane, index, count: the plane, the slice's index from 0, and the number of slices.
        left, right, top, bottom: patient side at each edge, one letter.
        true_aspect: whether the spacing is known. If it is not, voxels are drawn as cubes.
    """

    pixels: np.ndarray
    plane: Plane
    index: int
    count: int
    left: str
    right: str
    top: str
    bottom: str
    true_aspect: bool


def to_view(volume: Volume, plane: Plane) -> Volume:
    """Return the volume with slices of a plane along its first axis, rows and columns as they are drawn; a view."""
    return volume.to_orientation(_VIEWS[plane])


def slice_count(volume: Volume, plane: Plane) -> int:
    """Return the number of slices of `volume` in a plane."""
    return to_view(volume, plane).shape[0]


def draw_plane(
    volume: Volume, plane: Plane, position: float | int, window: Window, longest: int | None = 240
) -> PlanePicture:
    """Draw one slice with the patient's right (axial, coronal) or front (sagittal) at the left edge.

    Args:
        position: slice index from 0 as an int, or a fraction of the stack from 0 to 1 as a float (axial: from the feet
            up; coronal: from the front; sagittal: from the right). Positions beyond the last slice draw the last slice.
        window: in the volume's units.
        longest: length of the picture's longer edge in pixels; None: one pixel per voxel column, and as many rows as
            square pixels need.
    """
    view = to_view(volume, plane)
    count, rows, columns = view.shape
    index = min(position if isinstance(position, int) else int(position * count), count - 1)
    gray = np.rint(window.unit(np.ascontiguousarray(view.array[index])) * 255).astype(np.uint8)
    _, row_mm, column_mm = view.spacing or (1.0, 1.0, 1.0)
    height, width = rows * row_mm, columns * column_mm
    factor = 1 / column_mm if longest is None else longest / max(height, width)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    pixels = np.asarray(PIL.Image.fromarray(gray).resize(size, PIL.Image.Resampling.BILINEAR))
    down, right = view.orientation[1], view.orientation[2]
    return PlanePicture(
        pixels, plane, index, count, _OPPOSITE[right], right, _OPPOSITE[down], down, view.spacing is not None
    )


def display_windows(volume: Volume) -> dict[str, Window]:
    """Return display windows by name: lung and mediastinum for HU, else the 1st to 99th percentile of the values."""
    if volume.units == "HU":
        return {name: WINDOWS[name] for name in ("lung", "mediastinum")}
    sample = volume.array[:: max(volume.shape[0] // 32, 1), ::4, ::4]
    low, high = (float(v) for v in np.percentile(sample, (1, 99)))
    return {"1st to 99th percentile": Window((low + high) / 2, max(high - low, 1e-6))}


def histogram(volume: Volume, bins: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Return counts (bins,) and edges (bins + 1,) of the values, sampled at every 4th row and column.

    Hounsfield units are clipped to -1100..2000.
    """
    values = np.asarray(volume.array[:: max(volume.shape[0] // 64, 1), ::4, ::4], dtype=np.float32)
    limits = (-1100.0, 2000.0) if volume.units == "HU" else (float(values.min()), float(values.max()))
    if limits[0] == limits[1]:
        limits = (limits[0] - 0.5, limits[1] + 0.5)
    return np.histogram(np.clip(values, *limits), bins=bins, range=limits)
