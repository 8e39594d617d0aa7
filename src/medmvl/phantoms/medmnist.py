"""Phantom radiographs as a MedMNIST file: `chestmnist.npz` with 14 multi-label columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmvl.errors import DataError
from medmvl.files import PathLike, atomic
from medmvl.phantoms.phantom import Phantom

#: ChestMNIST's column of each finding that a radiograph phantom can show
COLUMNS = {"cardiomegaly": 1, "pleural effusion": 2, "lung nodule": 5, "consolidation": 8, "emphysema": 10}
SIZES = (28, 64, 128, 224)


def write_medmnist(root: PathLike, splits: Mapping[str, Iterable[Phantom]], *, size: int = 64) -> Path:
    """Write `splits` (train, val, test -> phantoms) as ChestMNIST of `size` pixels; return the .npz file.

    Raises:
        DataError: for a size or a split that MedMNIST does not have.
    """
    if size not in SIZES:
        raise DataError(f"MedMNIST has the sizes {', '.join(map(str, SIZES))}, not {size}.")
    arrays: dict[str, Any] = {}
    for split, phantoms in splits.items():
        if split not in ("train", "val", "test"):
            raise DataError(f"MedMNIST has the splits 'train', 'val' and 'test', not {split!r}.")
        images, labels = [], []
        for phantom in map(replace, phantoms):  # a copy, so that its pictures go once they are read
            images.append(np.asarray(Image.fromarray(phantom.radiograph).resize((size, size), Image.Resampling.BOX)))
            row = np.zeros(14, dtype=np.uint8)
            row[[column for name, column in COLUMNS.items() if name in phantom.findings]] = 1
            labels.append(row)
        arrays[f"{split}_images"] = np.array(images, dtype=np.uint8).reshape(-1, size, size)
        arrays[f"{split}_labels"] = np.array(labels, dtype=np.uint8).reshape(-1, 14)
    file = Path(root) / ("chestmnist.npz" if size == 28 else f"chestmnist_{size}.npz")
    with atomic(file) as temporary:
        np.savez_compressed(temporary, **arrays)
    return file
