"""Display windows and VOI lookup tables, which map values to gray levels.

The named windows are the usual CT settings in Hounsfield units (center, width) from Radiopaedia's article
"Windowing (CT)"; departments differ by a few tens of HU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

VoiFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True, slots=True)
class Window:
    """A DICOM VOI window.

    Attributes:
        center: value mapped to mid-gray.
        width: range of values between black and white; more than 0 (LINEAR: at least 1).
        function: mapping to gray, a value of the DICOM attribute VOI LUT Function.
    """

    center: float
    width: float
    function: VoiFunction = "LINEAR_EXACT"

    def __post_init__(self) -> None:
        least = 1.0 if self.function == "LINEAR" else 0.0
        if not (np.isfinite(self.center) and np.isfinite(self.width)) or self.width < least or self.width <= 0:
            raise ValueError(f"A {self.function} window cannot have center {self.center} and width {self.width}.")

    @property
    def bounds(self) -> tuple[float, float]:
        """The values mapped to black and white (SIGMOID: to 0.12 and 0.88 of white)."""
        if self.function == "LINEAR":
            low = self.center - 0.5 - (self.width - 1) / 2
            return low, low + self.width - 1
        return self.center - self.width / 2, self.center + self.width / 2

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Map values of any shape to float32 in [0, 1] by DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""
        x = np.asarray(values, dtype=np.float32)
        if self.function == "SIGMOID":
            exponent = np.clip(-4.0 * (x - self.center) / self.width, -80.0, 80.0)
            return (1.0 / (1.0 + np.exp(exponent))).astype(np.float32)
        low, high = self.bounds
        if high <= low:  # LINEAR of width 1: a step
            return (x > low).astype(np.float32)
        return np.clip((x - low) / (high - low), 0.0, 1.0).astype(np.float32)


@dataclass(frozen=True, eq=False, slots=True)
class VoiLut:
    """A DICOM VOI lookup table: value `first` + i becomes `entries[i]`, clamped at both ends (PS3.3 C.11.2.1.1)."""

    first: int
    entries: np.ndarray
    bits: int

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Map values of any shape to float32 in [0, 1]."""
        index = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return np.clip(self.entries[index] / np.float32(2**self.bits - 1), 0.0, 1.0).astype(np.float32)


WINDOWS: dict[str, Window] = {
    "full": Window(0, 2000),  # the ±1000 HU most 3D models are trained on
    "lung": Window(-600, 1500),
    "mediastinum": Window(50, 350),
    "bone": Window(400, 1800),
    "abdomen": Window(50, 400),
    "liver": Window(30, 150),
    "brain": Window(40, 80),
    "stroke": Window(40, 40),
    "angio": Window(300, 600),
}
