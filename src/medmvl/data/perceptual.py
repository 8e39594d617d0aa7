"""Detection of near-duplicate pictures: perceptual hash, index of hashes, and comparison of fine structure."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import ImageFilter

from medmvl.errors import DataError
from medmvl.imaging import read_image

SIDE = 16  # the hash has SIDE x SIDE bits; 64 bits, the usual size, do not tell two chest radiographs apart
_FLAT = 2.0  # gray levels: a picture with less contrast has nothing to compare
_VOLUMES = (".nii", ".gz", ".npy", ".npz", ".nrrd", ".mha")


def difference_hash(gray: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """Return the difference hash (imagehash.dhash) of gray pixels (H, W), (SIDE * SIDE,) bool; None for an empty picture."""
    picture = PilImage.fromarray(gray)
    if np.asarray(picture.resize((SIDE, SIDE), PilImage.Resampling.BOX), dtype=np.float32).std() < _FLAT:
        return None
    bits: NDArray[np.bool_] = imagehash.dhash(picture, hash_size=SIDE).hash.ravel()
    return bits


def gray_picture(path: Path) -> NDArray[np.uint8] | None:
    """Return an image file as gray pixels (H, W) uint8; None for volumes and files that are no image."""
    if path.is_dir() or path.suffix.lower() in _VOLUMES:
        return None
    try:
        return np.asarray(read_image(path).to_pil().convert("L"))
    except DataError:
        return None


def likeness(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return the correlation (-1..1) of the fine structure of two gray pictures (H, W) of any size and brightness.

    Both are shrunk to 48 x 48, and a blurred copy is subtracted, since the blur holds what all chests have in common. On
    phantom radiographs, a copy of another size, of JPEG quality 40 or 10 % brighter has 0.985 or more, and two patients
    have at most 0.94.
    """
    one, other = (_details(gray) for gray in (first, second))
    return float((one * other).mean() / max(float(one.std() * other.std()), 1e-6))


def _details(gray: NDArray[np.uint8]) -> NDArray[np.float32]:
    small = PilImage.fromarray(gray).resize((48, 48), PilImage.Resampling.BOX)
    blurred = small.filter(ImageFilter.BoxBlur(4))
    details = np.asarray(small, dtype=np.float32) - np.asarray(blurred, dtype=np.float32)
    return details - details.mean()


class NearIndex:
    """Index that finds earlier hashes within `distance` bits of a new one.

    Two hashes that differ in at most `distance` bits agree on at least one of `distance + 1` pieces (pigeonhole), so only
    hashes that share a piece are compared.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        self._pieces = np.array_split(np.arange(SIDE * SIDE), distance + 1)
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self._hashes: list[NDArray[np.uint8]] = []

    def add(self, bits: NDArray[np.bool_]) -> list[int]:
        """Add a hash (SIDE * SIDE,) bool; return the numbers (in order of adding) of the earlier ones near it."""
        packed = np.packbits(bits)
        keys = [(number, bits[piece].tobytes()) for number, piece in enumerate(self._pieces)]
        candidates = sorted({other for key in keys for other in self._buckets[key]})
        found = [c for c in candidates if int(np.bitwise_count(self._hashes[c] ^ packed).sum()) <= self.distance]
        for key in keys:
            self._buckets[key].append(len(self._hashes))
        self._hashes.append(packed)
        return found
