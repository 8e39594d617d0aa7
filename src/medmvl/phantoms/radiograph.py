"""Rendering of a scene: the CT in Hounsfield units, and the radiograph as its projection from back to front."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medmvl.phantoms.shapes import FloatArray, Grid, Piece, paint

CT_FIELD = (300.0, 380.0, 380.0)  # mm covered by the CT along z, y, x
RADIOGRAPH_FIELD = 350.0  # mm covered by the radiograph, both ways
RAY_STEPS = 36  # samples of a ray through the patient
RAY_LENGTH = 270.0  # mm
EXPOSURE = (35.0, 270.0)  # mm of water shown as the darkest and the brightest gray
RADIOGRAPH_CURVE = 1.5
ScanBox = tuple[tuple[int, int, int], tuple[int, int, int]]
BODY = 25.0  # mm of water: rays below this missed the patient


@dataclass(frozen=True)
class Radiograph:
    """A radiograph with the boxes and silhouettes of what it shows.

    Attributes:
        pixels: (H, W) uint8; the patient's left is on the right side of the picture, bone is bright.
        spacing: (row, column) mm.
        boxes: name -> (x, y, w, h) pixels, origin top left.
        regions: name -> (H, W) bool silhouette.
    """

    pixels: NDArray[np.uint8]
    spacing: tuple[float, float]
    boxes: dict[str, tuple[int, int, int, int]]
    regions: dict[str, NDArray[np.bool_]]


def scan(
    pieces: Sequence[Piece],
    shape: tuple[int, int, int],
    noise: float,
    rng: np.random.Generator,
    hidden: Collection[int] = (),
) -> tuple[NDArray[np.int16], tuple[float, float, float]]:
    """Return the CT (D, H, W) in HU, axes growing to Superior, Posterior, Left, and its spacing (z, y, x) in mm.

    Args:
        noise: standard deviation of the quantum noise in HU.
        hidden: positions of pieces that leave no trace; the noise is as if they were there.
    """
    grid, spacing = _scan_grid(shape)
    volume = np.full(shape, -1000.0, dtype=np.float32)
    for number, piece in enumerate(pieces):
        paint(volume.copy() if number in hidden else volume, grid, piece, rng)
    volume += rng.standard_normal(shape, dtype=np.float32) * np.float32(noise)
    return np.clip(np.rint(volume), -1024, 3071).astype(np.int16), spacing


def _scan_grid(shape: tuple[int, int, int]) -> tuple[Grid, tuple[float, float, float]]:
    """Return the voxels of a CT of `shape` (D, H, W), and their spacing (z, y, x) in mm."""
    z, y, x = (field / n for field, n in zip(CT_FIELD, shape, strict=True))
    return Grid.of(shape, (z, y, x)), (z, y, x)


def scan_boxes(pieces: Sequence[Piece], shape: tuple[int, int, int]) -> dict[str, ScanBox]:
    """Return the box of each named finding in a CT of `shape` (D, H, W): first voxel and end, along each axis."""
    grid, _ = _scan_grid(shape)
    regions: dict[str, NDArray[np.bool_]] = {}
    for piece in pieces:
        if piece.name is not None:
            window, weight = paint(np.zeros(shape, dtype=np.float32), grid, piece, None)
            region = regions.setdefault(piece.name, np.zeros(shape, dtype=np.bool_))
            region[window] |= weight > 0.5
    found: dict[str, ScanBox] = {}
    for name, region in regions.items():
        if region.any():
            places = np.argwhere(region)
            (a, b, c), (d, e, f) = places.min(0).tolist(), (places.max(0) + 1).tolist()
            found[name] = ((a, b, c), (d, e, f))
    return found


def expose(anatomy: Sequence[Piece], findings: Sequence[Piece], size: int, rng: np.random.Generator) -> Radiograph:
    """Project the scene to a radiograph of `size` x `size` pixels."""
    shape = (size, RAY_STEPS, size)
    spacing = (RADIOGRAPH_FIELD / size, RAY_LENGTH / RAY_STEPS, RADIOGRAPH_FIELD / size)
    # A rim as soft as the ray's step: a sharper one would show the steps as rings.
    grid = replace(Grid.of(shape, spacing), edge=max(spacing[0], 0.75 * spacing[1]))
    volume = np.full(shape, -1000.0, dtype=np.float32)
    organs = _paint_organs(volume, grid, anatomy)
    regions = organs | _paint_findings(volume, grid, findings)
    # Rows grow downwards on a picture and z upwards in the patient; x already grows to the patient's left.
    upright = {name: region[::-1] for name, region in regions.items() if region.any()}
    boxes = {name: bounding_box(region) for name, region in upright.items()}
    return Radiograph(_develop(volume, spacing[1], rng), (spacing[0], spacing[2]), boxes, upright)


def _paint_organs(volume: FloatArray, grid: Grid, pieces: Sequence[Piece]) -> dict[str, NDArray[np.bool_]]:
    """Paint in place; return the silhouette (z, x) of each organ's visible part."""
    owner = np.zeros(volume.shape, dtype=np.uint8)
    names: list[str | None] = [None]
    for piece in pieces:
        if piece.name not in names:
            names.append(piece.name)
        window, weight = paint(volume, grid, piece, None)  # a ray averages texture away
        owner[window][weight > 0.5] = names.index(piece.name)
    return {name: (owner == i).any(axis=1) for i, name in enumerate(names) if name is not None}


def _paint_findings(volume: FloatArray, grid: Grid, pieces: Sequence[Piece]) -> dict[str, NDArray[np.bool_]]:
    """Paint in place; return the silhouette (z, x) of each finding."""
    regions: dict[str, NDArray[np.bool_]] = {}
    for piece in pieces:
        window, weight = paint(volume, grid, piece, None)  # a ray averages texture away
        if piece.name is not None:
            region = regions.setdefault(piece.name, np.zeros((volume.shape[0], volume.shape[2]), dtype=np.bool_))
            region[window[0], window[2]] |= (weight > 0.5).any(axis=1)
    return regions


def _develop(volume: FloatArray, step: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn HU along each ray into a gray picture.

    The attenuation of a ray is the water-equivalent path, the sum of (1 + HU / 1000) mm. The grays follow a radiograph's curve,
    steep where little is absorbed, so that the lungs get more than half of them.
    """
    path = np.maximum(volume * np.float32(0.001) + 1.0, 0.0).sum(axis=1)[::-1] * np.float32(step)
    path += rng.standard_normal(path.shape, dtype=np.float32) * np.float32(2.0)
    low, high = EXPOSURE
    share = np.clip((path - low) / (high - low), 0.0, 1.0)
    shade = 0.06 + 0.92 * (1.0 - np.exp(-RADIOGRAPH_CURVE * share)) / (1.0 - np.exp(-RADIOGRAPH_CURVE))
    shade[path < BODY] = 0.0
    return np.rint(shade * 255.0).astype(np.uint8)


def bounding_box(region: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return (x, y, w, h) in pixels of the true part of `region` (H, W), which must not be empty."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
