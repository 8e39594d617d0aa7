"""What a user uploads becomes something to look at and to ask about: one image or one volume."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medmvl.errors import DataError
from medmvl.imaging import WINDOWS, Image, Volume, read_image, read_volume

Plane = Literal["axial", "coronal", "sagittal"]

#: Axis of a (D, H, W) volume in standard axial order that a plane cuts.
_AXES: dict[Plane, int] = {"axial": 0, "coronal": 1, "sagittal": 2}
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")

_VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".npz")


@dataclass(frozen=True)
class Study:
    """An uploaded image or volume.

    Attributes:
        image, volume: exactly one of them is set.
    """

    image: Image | None = None
    volume: Volume | None = None

    @property
    def slices(self) -> dict[Plane, int]:
        """Number of slices per plane; 1 for an image."""
        if self.volume is None:
            return dict.fromkeys(PLANES, 1)
        return {plane: self.volume.shape[axis] for plane, axis in _AXES.items()}

    def picture(self, plane: Plane = "axial", index: int = 0, window: str = "full") -> np.ndarray:
        """Return (H, W) or (H, W, 3) uint8 to look at, at the true aspect ratio as far as spacing is known.

        Args:
            window: name of a window in HU; ignored for images and for volumes in arbitrary units.
        """
        if self.volume is None:
            assert self.image is not None
            return np.asarray(self.image.to_pil())
        axis = _AXES[plane]
        values = np.asarray(self.volume.array).take(min(index, self.volume.shape[axis] - 1), axis=axis)
        grey = WINDOWS[window].unit(values) if self.volume.units == "HU" else _stretch(values)
        picture = (grey * 255).astype(np.uint8)
        if plane != "axial":
            picture = picture[::-1]  # slices grow towards the head, which belongs to the top
        return _true_aspect(picture, self.volume.spacing, axis)

    def describe(self) -> str:
        """Return one line: shape, spacing, units; no patient data."""
        return repr(self.volume if self.volume is not None else self.image)


def load_study(paths: Sequence[str | Path], prefer: Literal["image", "volume"]) -> Study:
    """Read uploaded files: one image, one volume file, or the slices of a DICOM series.

    Args:
        prefer: what a file that can be both (a single DICOM, npy) is read as.

    Raises:
        DataError: if the files are not readable as one study.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise DataError("Upload an image, a NIfTI file, or all slices of a DICOM series.")
    if len(files) > 1:
        return Study(volume=_read_series(files))
    name = files[0].name.lower()
    if name.endswith(_VOLUME_SUFFIXES):
        return Study(volume=read_volume(files[0]))
    if prefer == "volume" and name.endswith(".npy"):
        return Study(volume=read_volume(files[0], units="HU"))
    if prefer == "volume":
        try:
            return Study(volume=read_volume(files[0]))
        except DataError:
            return Study(image=read_image(files[0]))
    return Study(image=read_image(files[0]))


def _read_series(files: Sequence[Path]) -> Volume:
    """Read DICOM files that a browser delivered one by one, each in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="medmvl-") as folder:
        for number, file in enumerate(files):
            shutil.copyfile(file, Path(folder) / f"{number:05d}.dcm")
        return read_volume(folder)


def _stretch(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((values - low) / max(high - low, 1e-6), 0, 1)


def _true_aspect(picture: np.ndarray, spacing: tuple[float, float, float] | None, axis: int) -> np.ndarray:
    """Stretch the rows so that a pixel is square."""
    if spacing is None:
        return picture
    row_mm, column_mm = (value for index, value in enumerate(spacing) if index != axis)
    rows = max(1, round(picture.shape[0] * row_mm / column_mm))
    source = np.minimum((np.arange(rows) + 0.5) * picture.shape[0] / rows, picture.shape[0] - 1).astype(int)
    return picture[source]
