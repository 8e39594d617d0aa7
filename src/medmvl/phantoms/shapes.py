"""Solid shapes in patient millimeters, and the function that paints them onto a voxel grid.

Coordinates are the patient's own (DICOM "LPS"): x grows to the patient's Left, y to Posterior, z to Superior. A shape
has bounds and a weight: the filled share of each voxel, 0..1, with a soft edge of about one voxel like the partial volume
effect of a scanner. Painting evaluates a shape only inside its bounds, so a hundred small vessels cost little.

In all `weight` methods x is (1, 1, W), y (1, H, 1) and z (D, 1, 1), in mm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Point = tuple[float, float, float]  # (x, y, z) mm
Bounds = tuple[Point, Point]  # lower and upper corner, mm
EVERYWHERE: Bounds = ((-1e4, -1e4, -1e4), (1e4, 1e4, 1e4))


class Shape(Protocol):
    """A solid: its axis-aligned bounds, and the share of each voxel that it fills."""

    def bounds(self) -> Bounds:
        """Return the lower and upper corner (x, y, z) in mm."""

    def weight(self, x: FloatArray, y: FloatArray, z: FloatArray, edge: float) -> FloatArray:
        """Return the filled share (D, H, W), 0..1; `edge` is the width of the soft rim in mm."""


def _ramp(depth: NDArray[Any], edge: float) -> FloatArray:
    """Map a signed depth in mm (positive inside) to a filled share."""
    share: FloatArray = np.clip(depth * np.float32(1.0 / edge) + np.float32(0.5), 0.0, 1.0)
    return share


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with half-axes `radii` (x, y, z) in mm."""

    center: Point
    radii: Point

    def bounds(self) -> Bounds:
        """Return the corners of the surrounding box."""
        low = tuple(c - r for c, r in zip(self.center, self.radii, strict=True))
        high = tuple(c + r for c, r in zip(self.center, self.radii, strict=True))
        return low, high  # type: ignore[return-value]

    def weight(self, x: FloatArray, y: FloatArray, z: FloatArray, edge: float) -> FloatArray:
        """Return the filled share (D, H, W); the depth is exact on the shortest axis and an approximation elsewhere."""
        (cx, cy, cz), (rx, ry, rz) = self.center, self.radii
        square = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2
        return _ramp((1.0 - np.sqrt(square)) * min(self.radii), edge)


@dataclass(frozen=True)
class Column:
    """An elliptic cylinder along z between `bottom` and `top` mm; a `power` above 2 squares its outline."""

    center: tuple[float, float]
    radii: tuple[float, float]
    bottom: float = -1e4
    top: float = 1e4
    power: float = 2.0

    def bounds(self) -> Bounds:
        """Return the corners of the surrounding box."""
        (cx, cy), (rx, ry) = self.center, self.radii
        return (cx - rx, cy - ry, self.bottom), (cx + rx, cy + ry, self.top)

    def weight(self, x: FloatArray, y: FloatArray, z: FloatArray, edge: float) -> FloatArray:
        """Return the filled share, broadcastable to (D, H, W)."""
        (cx, cy), (rx, ry) = self.center, self.radii
        radius = (np.abs((x - cx) / rx) ** self.power + np.abs((y - cy) / ry) ** self.power) ** (1 / self.power)
        ends = _ramp(np.minimum(z - self.bottom, self.top - z), edge)
        return _ramp((1.0 - radius) * min(rx, ry), edge) * ends


@dataclass(frozen=True)
class Capsule:
    """A rod with round ends from `start` to `end`, `radius` mm thick."""

    start: Point
    end: Point
    radius: float

    def bounds(self) -> Bounds:
        """Return the corners of the surrounding box."""
        low = tuple(min(a, b) - self.radius for a, b in zip(self.start, self.end, strict=True))
        high = tuple(max(a, b) + self.radius for a, b in zip(self.start, self.end, strict=True))
        return low, high  # type: ignore[return-value]

    def weight(self, x: FloatArray, y: FloatArray, z: FloatArray, edge: float) -> FloatArray:
        """Return the filled share (D, H, W), from the distance to the axis."""
        (ax, ay, az), (bx, by, bz) = self.start, self.end
        dx, dy, dz = bx - ax, by - ay, bz - az
        length = max(dx * dx + dy * dy + dz * dz, 1e-6)
        along = np.clip(((x - ax) * dx + (y - ay) * dy + (z - az) * dz) / length, 0.0, 1.0)
        square = (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2 + (z - az - along * dz) ** 2
        return _ramp(self.radius - np.sqrt(square), edge)


@dataclass(frozen=True)
class Box:
    """A block with half-sizes `radii` (x, y, z) in mm."""

    center: Point
    radii: Point

    def bounds(self) -> Bounds:
        """Return the corners."""
        return Ellipsoid(self.center, self.radii).bounds()

    def weight(self, x: FloatArray, y: FloatArray, z: FloatArray, edge: float) -> FloatArray:
        """Return the filled share, broadcastable to (D, H, W)."""
        parts = [_ramp(r - np.abs(v - c), edge) for v, c, r in zip((x, y, z), self.center, self.radii, strict=True)]
        return parts[0] * parts[1] * parts[2]


@dataclass(frozen=True)
class Below:
    """The half-space below the tilted plane z = height + slope_x·x + slope_y·y, such as a fluid level."""

    height: float
    slope_x: float = 0.0
    slope_y: float = 0.0

    def bounds(self) -> Bounds:
        """Return unlimited corners."""
        return EVERYWHERE

    def weight(self, x: FloatArray, y: FloatArray, z: FloatArray, edge: float) -> FloatArray:
        """Return the filled share, broadcastable to (D, H, W)."""
        return _ramp(self.height + self.slope_x * x + self.slope_y * y - z, edge)


@dataclass(frozen=True)
class Shoulders:
    """The space under two slopes that fall from a ridge at `center` (x), `height` (z), by `slope` mm per mm."""

    center: float
    height: float
    slope: float

    def bounds(self) -> Bounds:
        """Return unlimited corners."""
        return EVERYWHERE

    def weight(self, x: FloatArray, y: FloatArray, z: FloatArray, edge: float) -> FloatArray:
        """Return the filled share, broadcastable to (D, H, W)."""
        return _ramp(self.height - self.slope * np.abs(x - self.center) - z, edge)


@dataclass(frozen=True)
class Outside:
    """The complement of `shape`."""

    shape: Shape

    def bounds(self) -> Bounds:
        """Return unlimited corners."""
        return EVERYWHERE

    def weight(self, x: FloatArray, y: FloatArray, z: FloatArray, edge: float) -> FloatArray:
        """Return the share of each voxel that `shape` leaves, broadcastable to (D, H, W)."""
        return np.float32(1.0) - self.shape.weight(x, y, z, edge)


@dataclass(frozen=True)
class Ribs:
    """Slanting hoops on an elliptic cage: `pitch` mm apart, falling `slant` mm per mm from back to front."""

    center: tuple[float, float]
    radii: tuple[float, float]
    bottom: float
    top: float
    pitch: float
    slant: float
    thickness: float

    def bounds(self) -> Bounds:
        """Return the corners of the surrounding box."""
        (cx, cy), (rx, ry), t = self.center, self.radii, self.thickness
        return (cx - rx - t, cy - ry - t, self.bottom), (cx + rx + t, cy + ry + t, self.top)

    def weight(self, x: FloatArray, y: FloatArray, z: FloatArray, edge: float) -> FloatArray:
        """Return the filled share, broadcastable to (D, H, W)."""
        (cx, cy), (rx, ry) = self.center, self.radii
        radius = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
        shell = _ramp(self.thickness - np.abs(radius - 1.0) * min(rx, ry), edge)
        level = (z - self.slant * (y - cy) - self.bottom) / self.pitch
        from_center = np.abs(level - np.floor(level) - 0.5) * self.pitch
        return shell * _ramp(self.thickness - from_center, edge)


@dataclass(frozen=True)
class Piece:
    """A shape of one material.

    Attributes:
        shape: where it is.
        hu: its density in Hounsfield units.
        name: the organ or finding it belongs to; None if no question names it.
        within: shapes that all limit the piece: it exists only inside every one of them.
        rough: standard deviation in HU of a coarse texture of the material.
    """

    shape: Shape
    hu: float
    name: str | None = None
    within: tuple[Shape, ...] = ()
    rough: float = 0.0


@dataclass(frozen=True)
class Grid:
    """Voxel centers in mm along z (D,), y (H,), x (W,), each growing to Superior, Posterior, Left."""

    z: FloatArray
    y: FloatArray
    x: FloatArray
    edge: float = field(default=4.0)

    @classmethod
    def of(cls, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
        """Make a grid of `shape` (D, H, W) and `spacing` (z, y, x) mm, centered on the patient's origin."""
        axes = [
            ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32) for n, step in zip(shape, spacing, strict=True)
        ]
        return cls(axes[0], axes[1], axes[2], edge=float(min(spacing[1:])))

    def window(self, bounds: Bounds) -> tuple[slice, slice, slice]:
        """Return the index ranges (z, y, x) that `bounds` covers, with a margin of one soft rim."""
        margin = self.edge
        (x0, y0, z0), (x1, y1, z1) = bounds
        slices = []
        for axis, low, high in ((self.z, z0, z1), (self.y, y0, y1), (self.x, x0, x1)):
            start, stop = np.searchsorted(axis, (low - margin, high + margin))
            slices.append(slice(int(start), int(stop)))
        return slices[0], slices[1], slices[2]


def paint(
    volume: FloatArray, grid: Grid, piece: Piece, rng: np.random.Generator | None
) -> tuple[tuple[slice, ...], FloatArray]:
    """Blend `piece` into `volume` (D, H, W) in place; return the painted window and its weights (d, h, w).

    Without `rng` the materials are smooth.
    """
    window = grid.window(piece.shape.bounds())
    part = volume[window]
    if part.size == 0:
        return window, part
    z = grid.z[window[0]][:, None, None]
    y = grid.y[window[1]][None, :, None]
    x = grid.x[window[2]][None, None, :]
    weight = np.broadcast_to(piece.shape.weight(x, y, z, grid.edge), part.shape)
    for limit in piece.within:
        weight = weight * limit.weight(x, y, z, grid.edge)
    if piece.rough and rng is not None:
        step = rng.standard_normal(part.shape, dtype=np.float32)
        step *= np.float32(piece.rough)
        step += np.float32(piece.hu)
        step -= part
    else:
        step = np.float32(piece.hu) - part
    step *= weight
    part += step
    return window, np.asarray(weight, dtype=np.float32)
