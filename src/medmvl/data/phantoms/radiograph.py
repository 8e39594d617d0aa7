"""From a scene to pictures: the CT in Hounsfield units, and the radiograph as its projection from back to front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medmvl.data.phantoms.shapes import FloatArray, Grid, Piece, paint

CT_FIELD = (300.0, 380.0, 380.0)  # mm covered by the CT along z, y, x
FILM_FIELD = 350.0  # mm covered by the radiograph, both ways
RAY_STEPS = 36  # samples of a ray through the patient
RAY_LENGTH = 270.0  # mm
EXPOSURE = (35.0, 270.0)  # mm of water shown as the darkest and the brightest grey
FILM_CURVE = 1.5
BODY = 25.0  # mm of water: rays below this missed the patient


@dataclass(frozen=True)
class Film:
    """A radiograph and what lies where on it.

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
    pieces: Sequence[Piece], shape: tuple[int, int, int], noise: float, rng: np.random.Generator
) -> tuple[NDArray[np.int16], tuple[float, float, float]]:
    """Return the CT (D, H, W) in HU, axes growing to Superior, Posterior, Left, and its spacing (z, y, x) in mm.

    `noise` is the standard deviation of the quantum noise in HU.
    """
    spacing = tuple(field / n for field, n in zip(CT_FIELD, shape, strict=True))
    grid = Grid.of(shape, spacing)  # type: ignore[arg-type]
    volume = np.full(shape, -1000.0, dtype=np.float32)
    for piece in pieces:
        paint(volume, grid, piece, rng)
    volume += rng.standard_normal(shape, dtype=np.float32) * np.float32(noise)
    return np.clip(np.rint(volume), -1024, 3071).astype(np.int16), spacing  # type: ignore[return-value]


def expose(anatomy: Sequence[Piece], findings: Sequence[Piece], size: int, rng: np.random.Generator) -> Film:
    """Project the scene to a radiograph of `size` x `size` pixels."""
    shape = (size, RAY_STEPS, size)
    spacing = (FILM_FIELD / size, RAY_LENGTH / RAY_STEPS, FILM_FIELD / size)
    # A rim as soft as the ray's step: a sharper one would show the steps as rings.
    grid = replace(Grid.of(shape, spacing), edge=max(spacing[0], 0.75 * spacing[1]))
    volume = np.full(shape, -1000.0, dtype=np.float32)
    organs = _paint_organs(volume, grid, anatomy)
    regions = organs | _paint_findings(volume, grid, findings)
    # Rows grow downwards on a picture and z upwards in the patient; x already grows to the patient's left.
    upright = {name: region[::-1] for name, region in regions.items() if region.any()}
    boxes = {name: bounding_box(region) for name, region in upright.items()}
    return Film(_develop(volume, spacing[1], rng), (spacing[0], spacing[2]), boxes, upright)


def _paint_organs(volume: FloatArray, grid: Grid, pieces: Sequence[Piece]) -> dict[str, NDArray[np.bool_]]:
    """Paint in place; return the silhouette (z, x) of what remains visible of each organ after all are painted."""
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
    """Turn HU along each ray into a grey picture.

    The attenuation of a ray is the water-equivalent path, the sum of (1 + HU / 1000) mm. The greys follow a film's curve,
    steep where little is absorbed, so that the lungs get more than half of them.
    """
    path = np.maximum(volume * np.float32(0.001) + 1.0, 0.0).sum(axis=1)[::-1] * np.float32(step)
    path += rng.standard_normal(path.shape, dtype=np.float32) * np.float32(2.0)
    low, high = EXPOSURE
    share = np.clip((path - low) / (high - low), 0.0, 1.0)
    shade = 0.06 + 0.92 * (1.0 - np.exp(-FILM_CURVE * share)) / (1.0 - np.exp(-FILM_CURVE))
    shade[path < BODY] = 0.0
    return np.rint(shade * 255.0).astype(np.uint8)


def bounding_box(region: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return (x, y, w, h) in pixels of the true part of `region` (H, W), which must not be empty."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
