"""States of the random number generators in checkpoints, so that a resumed run draws the same numbers."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)


def save_rng(folder: Path, rank: int | None = None) -> None:
    """Write the states of Python's, numpy's and torch's generators.

    Args:
        folder: of the checkpoint.
        rank: this process, if there are several.
    """
    version, internal, gauss = random.getstate()
    generator: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = generator
    states: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    torch.save(states, folder / _file(rank))


def load_rng(folder: Path, rank: int, world: int) -> None:
    """Restore the states that `save_rng` wrote; another number of processes leaves them as they are.

    Args:
        folder: of the checkpoint.
        rank: this process.
        world: number of processes.
    """
    file = folder / _file(rank if world > 1 else None)
    if not file.is_file():
        logger.info("%s was written with another number of processes: random numbers start from the seed.", folder)
        return
    states = torch.load(file, weights_only=True)
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _file(rank: int | None) -> str:
    return "rng_state.pth" if rank is None else f"rng_state_{rank}.pth"
