"""Windows, min-max scaling and normalization of a geometry, applied one slice at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Intensity:
    """The gray-value steps of a geometry.

    Every step is monotone, so a maximum may be taken before the step instead of after it.

    Attributes:
        windows, scale, normalize: as in `Geometry`.
        extremes: minimum and maximum of the volume after the window, which min-max scaling maps to 0 and 1; None: no
            min-max scaling.
    """

    windows: tuple[tuple[float, float], ...]
    scale: tuple[float, float]
    normalize: tuple[float, float] | None = None
    extremes: tuple[float, float] | None = None

    def stretched_to(self, raw_range: tuple[float, float]) -> Intensity:
        """Return the same steps with min-max scaling for a volume whose raw values span `raw_range`.

        Raises:
            ValueError: if all values are equal after the window.
        """
        low, high = (float(v) for v in self._windowed(np.asarray(raw_range, dtype=np.float32))[0])
        if low == high:
            raise ValueError("all values are equal after the window")
        return replace(self, extremes=(low, high))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Map raw values of shape (h, w), or any other shape S, to float32 gray values of shape (C, *S)."""
        channels = self._windowed(values)
        if self.extremes is not None:
            low, high = np.float32(self.extremes[0]), np.float32(self.extremes[1])
            channels = (channels - low) / (high - low)
        if self.normalize is not None:
            mean, std = self.normalize
            channels = (channels - np.float32(mean)) / np.float32(std)
        return channels

    def is_positive(self, values: np.ndarray) -> np.ndarray:
        """Return a boolean array of the shape of `values` (any shape): whether the gray value is above 0.

        Only for geometries with one channel.
        """
        return self.apply(values)[0] > 0

    def _windowed(self, values: np.ndarray) -> np.ndarray:
        """Clip to each window and scale to contiguous float32 (C, *S).

        Computed as (v - low) * range / width, which for integers gives the reference's float64 result rounded to float32.
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
    """Clip values of any shape to [low, high] and subtract low.

    int16 values stay int16 where the result fits, which halves the memory traffic.
    """
    limits = np.iinfo(np.int16)
    if values.dtype == np.int16 and float(low).is_integer() and float(high).is_integer() and high - low <= limits.max:
        clipped = np.clip(values, int(max(low, limits.min)), int(min(high, limits.max)))
        if low >= limits.min:
            return np.subtract(clipped, np.int16(low), out=clipped)
    return np.clip(values.astype(np.float32), np.float32(low), np.float32(high)) - np.float32(low)
