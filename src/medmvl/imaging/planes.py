"""Pictures of a volume as a radiologist looks at it: three planes at true aspect ratio, sides known at every edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import PIL.Image

from medmvl.imaging.orientation import AXIAL
from medmvl.imaging.volume import Volume
from medmvl.imaging.windows import WINDOWS, Window

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
#: orientation in which the first array axis runs through the slices of a plane, rows go down and columns to the
#: right of the picture: the patient's right (axial, coronal) or front (sagittal) is at the left edge, as is customary
_VIEWS: dict[Plane, str] = {"axial": AXIAL, "coronal": "PIL", "sagittal": "LIP"}
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


@dataclass(frozen=True, eq=False)
class PlanePicture:
    """One slice, drawn.

    Attributes:
        pixels: (rows, columns) uint8, square pixels.
        plane, index, count: which of how many slices.
        left, right, top, bottom: patient side at each edge, one letter.
        true_aspect: whether the spacing is known.
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


def draw_plane(volume: Volume, plane: Plane, place: float, window: Window, longest: int = 240) -> PlanePicture:
    """Draw one slice.

    Args:
        place: where along the stack, 0 to 1 (axial: from the feet up; coronal: from the front; sagittal: from the right).
        window: in the volume's units.
        longest: pixels of the picture's longer edge.
    """
    view = volume.to_orientation(_VIEWS[plane])
    count, rows, columns = view.shape
    index = min(int(place * count), count - 1)
    grey = np.rint(window.unit(np.ascontiguousarray(view.array[index])) * 255).astype(np.uint8)
    _, row_mm, column_mm = view.spacing or (1.0, 1.0, 1.0)
    height, width = rows * row_mm, columns * column_mm
    factor = longest / max(height, width)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    pixels = np.asarray(PIL.Image.fromarray(grey).resize(size, PIL.Image.Resampling.BILINEAR))
    down, right = view.orientation[1], view.orientation[2]
    return PlanePicture(
        pixels, plane, index, count, _OPPOSITE[right], right, _OPPOSITE[down], down, view.spacing is not None
    )


def display_windows(volume: Volume) -> dict[str, Window]:
    """Return the windows to show a volume in: lung and mediastinum in HU, else its 1st to 99th percentile."""
    if volume.units == "HU":
        return {name: WINDOWS[name] for name in ("lung", "mediastinum")}
    sample = volume.array[:: max(volume.shape[0] // 32, 1), ::4, ::4]
    low, high = (float(v) for v in np.percentile(sample, (1, 99)))
    return {"1st to 99th percentile": Window((low + high) / 2, max(high - low, 1e-6))}


def histogram(volume: Volume, bins: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Return counts (bins,) and edges (bins + 1,) of every 4th voxel in each direction; HU from -1100 to 2000."""
    values = np.asarray(volume.array[:: max(volume.shape[0] // 64, 1), ::4, ::4], dtype=np.float32)
    limits = (-1100.0, 2000.0) if volume.units == "HU" else (float(values.min()), float(values.max()))
    if limits[0] == limits[1]:
        limits = (limits[0] - 0.5, limits[1] + 0.5)
    return np.histogram(np.clip(values, *limits), bins=bins, range=limits)
