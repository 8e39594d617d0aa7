"""Interpolation of learned position embeddings to another grid."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

logger = logging.getLogger(__name__)


def resize_positions(table: Tensor, old: tuple[int, ...], new: tuple[int, ...], who: str) -> Tensor:
    """Interpolate a table of positions linearly to another grid; a class token's row in front is kept.

    Args:
        table: (1, prefix + prod(old), C).
        old, new: (d, h, w) grids.
        who: name of the encoder, for the log line.

    Returns:
        (1, prefix + prod(new), C).
    """
    if old == new:
        return table
    log_interpolation(who, old, new)
    prefix = table.shape[1] - torch.Size(old).numel()
    grid = table[:, prefix:].transpose(1, 2).unflatten(2, old).float()  # (1, C, d, h, w)
    resized = interpolate(grid, size=new, mode="trilinear", align_corners=False)
    return torch.cat([table[:, :prefix], resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


@lru_cache(maxsize=256)  # once per encoder and size, not once per batch
def log_interpolation(who: str, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    """Log that an encoder runs at another grid or size than it was trained at."""
    logger.warning(
        "The encoder %s was trained at %s and runs at %s: its position embeddings are interpolated.",
        who,
        "x".join(map(str, old)),
        "x".join(map(str, new)),
    )
