"""A 2D image: values as they were stored, and everything needed to show them rightly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image

from medmvl.errors import ImagingError
from medmvl.imaging.windows import VoiLut, Window


@dataclass(frozen=True, eq=False, repr=False)
class Image:
    """A 2D image in memory.

    Attributes:
        array: (H, W) grey or (H, W, 3) RGB; uint8 for colour, else the stored integer type, or float32 after a
            fractional rescale.
        spacing: (row, column) mm between pixel centres; None if unknown.
        units: "HU" for CT slices, else "arbitrary".
        window: how the file wants its grey values shown; None: 8-bit values as they are, others from least to greatest.
        inverted: MONOCHROME1: the least value is white.
        history: what was done since the file, one sentence per step.
        source: kind of file ("dicom", "png", "npy", ...).
    """

    array: np.ndarray
    spacing: tuple[float, float] | None = None
    units: str = "arbitrary"
    window: Window | VoiLut | None = None
    inverted: bool = False
    history: tuple[str, ...] = ()
    source: str = "array"

    def __post_init__(self) -> None:
        shape, dtype = self.array.shape, self.array.dtype
        colour = self.array.ndim == 3 and shape[2] == 3
        if not (self.array.ndim == 2 or colour) or 0 in shape:
            raise ImagingError(f"An image is (H, W) or (H, W, 3); this array has shape {tuple(shape)}.")
        if dtype.kind not in "iufb" or (colour and dtype != np.uint8):
            raise ImagingError(f"An image holds real grey values, or uint8 colours; this array has dtype {dtype}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, 3)."""
        return self.array.shape

    def to_uint8(self, window: Window | None = None) -> np.ndarray:
        """Return (H, W) or (H, W, 3) uint8 as a viewer shows it: windowed, MONOCHROME1 turned to black-is-low.

        Args:
            window: instead of the file's own, in the image's units; ignored for colour.
        """
        if self.array.ndim == 3:
            return self.array
        mapping = window or self.window
        if mapping is None and self.array.dtype == np.uint8:
            grey = self.array
        else:
            unit = mapping.unit(self.array) if mapping is not None else self._stretched()
            grey = np.rint(unit * 255).astype(np.uint8)
        return 255 - grey if self.inverted else grey

    def to_pil(self, window: Window | None = None) -> PIL.Image.Image:
        """Return `to_uint8` as a PIL image of mode RGB, which is what image processors take."""
        return PIL.Image.fromarray(self.to_uint8(window)).convert("RGB")

    def _stretched(self) -> np.ndarray:
        values = self.array.astype(np.float32)
        low, high = float(values.min()), float(values.max())
        if high == low:
            return np.zeros_like(values)
        return (values - low) / (high - low)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.array.shape))
        mm = "unknown spacing" if self.spacing is None else "x".join(f"{v:.3g}" for v in self.spacing) + " mm"
        lines = [f"Image({shape} {self.array.dtype}, {self.units}, {mm}, from {self.source})"]
        return "\n".join([*lines, *(f"  - {step}" for step in self.history)])
