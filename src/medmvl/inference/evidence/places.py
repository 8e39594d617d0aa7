"""Positions of a model's pixels in the input that the user gave, and heat maps on the input's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmvl.data.read_options import reading_of
from medmvl.imaging import Geometry, Volume, read_image, read_volume
from medmvl.imaging.orientation import reorient
from medmvl.imaging.preprocessing.resample import plan_axis

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Places:
    """Where the pixels of the model's input are in the user's input.

    Attributes:
        positions: per axis of the model's input the index in the input, (N,) float64; nan where it shows padding.
        shape: of the input along the same axes, (H, W) or (D, H, W).
        volume: the volume that is shown, None for an image or a prepared tensor.
        oriented: affine (4, 4) of the input in the model's orientation, None without `volume`.
    """

    positions: tuple[NDArray[np.float64], ...]
    shape: tuple[int, ...]
    volume: Volume | None = None
    oriented: NDArray[np.float64] | None = None

    @classmethod
    def of_tensor(cls, shape: Sequence[int]) -> Places:
        """Return the identity, for a prepared tensor with the spatial `shape`."""
        return cls(tuple(np.arange(n, dtype=np.float64) for n in shape), tuple(shape))

    @property
    def steps(self) -> tuple[float, ...]:
        """Input pixels per pixel of the model's input, per axis."""
        found = []
        for positions in self.positions:
            seen = positions[np.isfinite(positions)]
            found.append(float((seen[-1] - seen[0]) / (len(seen) - 1)) if len(seen) > 1 else 1.0)
        return tuple(found)

    def to_input(self, values: Floats) -> Floats:
        """Interpolate values (D, H, W) or (H, W) on the model's grid linearly to the input's own grid.

        Places that the model does not see (outside of the crop) are 0.
        """
        for axis, (positions, length) in enumerate(zip(self.positions, self.shape, strict=True)):
            values = _along(values, axis, positions, length)
        if self.volume is None or self.oriented is None:
            return values
        view, _ = reorient(values, self.oriented, self.volume.orientation)
        return np.ascontiguousarray(view)

    def in_input_order(self, sizes: tuple[float, ...]) -> tuple[float, ...]:
        """Return one number per axis of the model's input in the order of the input's axes."""
        if self.volume is None or self.oriented is None:
            return sizes
        lengths = (2, 3, 5)  # they differ, so that they tell the axes apart
        view, _ = reorient(np.empty(lengths), self.oriented, self.volume.orientation)
        return tuple(sizes[lengths.index(length)] for length in view.shape)

    def profile(self, values: Floats) -> tuple[Floats, int]:
        """Bring values (N,) along the model's first axis to the input: (n,) and the input's axis that they belong to."""
        found = _along(values, 0, self.positions[0], self.shape[0])
        if self.volume is None or self.oriented is None:
            return found, 0
        shape = (len(found), *(1 for _ in self.shape[1:]))
        view, _ = reorient(found.reshape(shape), self.oriented, self.volume.orientation)
        return np.ascontiguousarray(view).reshape(-1), int(np.argmax(view.shape))


def _along(values: Floats, axis: int, positions: NDArray[np.float64], length: int) -> Floats:
    """Interpolate one axis of `values` to the input's indices; half a pixel around what is seen repeats its edge."""
    seen = np.flatnonzero(np.isfinite(positions))
    known = positions[seen]
    rise = np.flatnonzero(np.diff(known, prepend=-np.inf) > 0)  # the last voxel may be repeated
    seen, known = seen[rise], known[rise]
    wanted = np.arange(length)
    index = np.interp(wanted, known, seen)
    low = np.floor(index).astype(np.int64)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    shape = [1] * values.ndim
    shape[axis] = length
    weight = (index - low).astype(np.float32).reshape(shape)
    mixed = np.take(values, low, axis) * (1 - weight) + np.take(values, high, axis) * weight
    margin = (known[-1] - known[0]) / (len(known) - 1) / 2 + 0.5 if len(known) > 1 else 0.5
    inside = (wanted >= known[0] - margin) & (wanted <= known[-1] + margin)
    return (mixed * inside.reshape(shape)).astype(np.float32)


def opened(given: Any, modality: str) -> Any:
    """Return an image or a volume that is read, if it is a path or an array in HU; what is prepared already stays."""
    if modality == "image":
        return read_image(given, **reading_of(given).for_image()) if isinstance(given, str) else given
    if isinstance(given, str):
        return read_volume(given, **reading_of(given).for_volume())
    return Volume.from_array(given, units="HU") if isinstance(given, np.ndarray) else given


def volume_places(geometry: Geometry, volume: Volume) -> Places:
    """Return the places of a volume, prepared by `geometry`."""
    oriented = volume.to_orientation(geometry.orientation)
    plan = geometry.plan(volume)
    step = plan.step or (None, None, None)
    positions = []
    for axis, (start, stop) in enumerate(zip(*plan.box, strict=True)):
        one = plan_axis(stop - start, plan.resampled[axis], plan.size[axis], plan.grid, step[axis], plan.offset[axis])
        position = start + one.low + one.weight.astype(np.float64)
        positions.append(np.where(one.inside, position, np.nan))
    return Places(tuple(positions), oriented.shape, volume, oriented.affine)
