"""From raw values to grey values: windows, min-max and normalisation of a geometry, one slice at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medmvl.errors import GeometryError

if TYPE_CHECKING:
    from medmvl.imaging.geometry import Geometry


@dataclass(frozen=True)
class Intensity:
    """The grey-value steps of a geometry, bound to the value range of one volume where min-max needs it.

    Every step is monotone, so that maxima may be taken before it instead of after it.

    Attributes:
        windows, scale, normalize: as in `Geometry`.
        extremes: the volume's least and greatest value after the window; None without min-max.
    """

    windows: tuple[tuple[float, float], ...]
    scale: tuple[float, float]
    normalize: tuple[float, float] | None
    extremes: tuple[float, float] | None

    @classmethod
    def of(cls, geometry: Geometry, raw_range: tuple[float, float] | None) -> Intensity:
        """Return the steps of `geometry` for a volume whose raw values span `raw_range` (needed for min-max).

        Raises:
            GeometryError: if min-max is asked for and all values are equal after the window.
        """
        plain = cls(geometry.windows, geometry.scale, geometry.normalize, None)
        if raw_range is None:
            return plain
        low, high = (float(v) for v in plain._windowed(np.asarray(raw_range, dtype=np.float32))[0])
        if low == high:
            raise GeometryError(
                f"Geometry {geometry.name!r} stretches values to 0..1 and the volume is constant "
                f"(values from {raw_range[0]:g} to {raw_range[1]:g})."
            )
        return cls(geometry.windows, geometry.scale, geometry.normalize, (low, high))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Map raw values of shape S to float32 (C, *S)."""
        channels = self._windowed(values)
        if self.extremes is not None:
            low, high = np.float32(self.extremes[0]), np.float32(self.extremes[1])
            channels = (channels - low) / (high - low)
        if self.normalize is not None:
            mean, std = self.normalize
            channels = (channels - np.float32(mean)) / np.float32(std)
        return channels

    def is_positive(self, values: np.ndarray) -> np.ndarray:
        """Say for raw values of a one-channel geometry whether their grey value is above 0."""
        return self.apply(values)[0] > 0

    def _windowed(self, values: np.ndarray) -> np.ndarray:
        """Clip to each window and scale; contiguous float32 (C, *S).

        (v - low) * range / width: in float32 exact to the last bit for integers, and what the reference's float64 gives.
        """
        if not self.windows:
            return np.ascontiguousarray(values, dtype=np.float32)[None]
        channels = np.empty((len(self.windows), *values.shape), dtype=np.float32)
        bottom, top = self.scale
        for channel, (low, high) in zip(channels, self.windows, strict=True):
            np.multiply(_above(values, low, high), np.float32(top - bottom), out=channel)
            channel /= np.float32(high - low)
            if bottom:
                channel += np.float32(bottom)
        return channels


def _above(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Clip to [low, high] and subtract low; integers stay 16-bit where they can: half the memory traffic."""
    limits = np.iinfo(np.int16)
    if values.dtype == np.int16 and float(low).is_integer() and float(high).is_integer() and high - low <= limits.max:
        clipped = np.clip(values, int(max(low, limits.min)), int(min(high, limits.max)))
        if low >= limits.min:
            return np.subtract(clipped, np.int16(low), out=clipped)
    return np.clip(values.astype(np.float32), np.float32(low), np.float32(high)) - np.float32(low)
