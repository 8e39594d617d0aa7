"""The `Image` class: stored values of a 2D image and how to display them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image

from medmvl.errors import ImagingError, shown
from medmvl.imaging.preprocessing.windows import VoiLut, Window


@dataclass(frozen=True, eq=False, repr=False)
class Image:
    """A 2D image in memory.

    Attributes:
        array: (H, W) gray or (H, W, 3) RGB; uint8 for color, else the stored integer type, or float32 after a
            fractional rescale.
        spacing: (row, column) mm between pixel centers; None if unknown.
        units: "HU" for CT slices, else "arbitrary".
        window: display window or table of the file; None: 8-bit values are shown unchanged, others are stretched from
            their minimum to their maximum.
        inverted: whether low values are white (MONOCHROME1, TIFF WhiteIsZero).
        padding: (H, W) booleans, pixels without a measurement; they take no part in the contrast and are shown black.
        history: processing steps since the file, one sentence each.
        warnings: findings that may matter to the user (EXIF orientation, transparency, implausible units ...).
        source: kind of file ("dicom", "png", "npy", ...).
        sides: the patient's sides at the left, right, top and bottom edge, such as ("R", "L", "S", "I"); None if the file
            does not state them.
    """

    array: np.ndarray
    spacing: tuple[float, float] | None = None
    units: str = "arbitrary"
    window: Window | VoiLut | None = None
    inverted: bool = False
    padding: np.ndarray | None = None
    history: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    source: str = "array"
    sides: tuple[str, str, str, str] | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.array.shape, self.array.dtype
        color = self.array.ndim == 3 and shape[2] == 3
        if not (self.array.ndim == 2 or color) or 0 in shape:
            raise ImagingError(f"An image is (H, W) or (H, W, 3); this array has shape {tuple(shape)}.")
        if dtype.kind not in "iufb" or (color and dtype != np.uint8):
            raise ImagingError(f"An image holds real gray values, or uint8 colors; this array has dtype {dtype}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, 3)."""
        return self.array.shape

    def to_uint8(self, window: Window | None = None) -> np.ndarray:
        """Return (H, W) or (H, W, 3) uint8 as a viewer shows it: windowed, with low values black.

        Args:
            window: used instead of the file's window, in the image's units; ignored for color.

        Raises:
            ImagingError: if `window` is of another type.
        """
        if window is not None and not isinstance(window, Window):
            raise ImagingError(f"window must be a Window such as WINDOWS['lung'], not {shown(window)}.")
        if self.array.ndim == 3:
            return self.array
        mapping = window or self.window
        if mapping is None and self.array.dtype == np.uint8:
            gray = self.array
        else:
            unit = mapping.unit(self.array) if mapping is not None else self._stretched()
            gray = np.rint(unit * 255).astype(np.uint8)
        display = 255 - gray if self.inverted else gray
        return display if self.padding is None else np.where(self.padding, np.uint8(0), display)

    def to_pil(self, window: Window | None = None) -> PIL.Image.Image:
        """Return `to_uint8` as a PIL image of mode RGB, the input of image processors."""
        return PIL.Image.fromarray(self.to_uint8(window)).convert("RGB")

    def _stretched(self) -> np.ndarray:
        """Return (H, W) float32 in [0, 1], stretched from the minimum to the maximum outside of the padding."""
        single = self.array.dtype.itemsize < 4 or self.array.dtype == np.float32
        values: np.ndarray = self.array.astype(np.float32 if single else np.float64)
        measured = values if self.padding is None else values[~self.padding]
        low, high = (float(measured.min()), float(measured.max())) if measured.size else (0.0, 0.0)
        if high == low:
            return np.zeros(values.shape, dtype=np.float32)
        return np.clip((values - low) / (high - low), 0, 1).astype(np.float32)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.array.shape))
        mm = "unknown spacing" if self.spacing is None else "x".join(f"{v:.3g}" for v in self.spacing) + " mm"
        lines = [f"Image({shape} {self.array.dtype}, {self.units}, {mm}, from {self.source})"]
        lines += [f"  - {step}" for step in self.history]
        return "\n".join([*lines, *(f"  ! {warning}" for warning in self.warnings)])
