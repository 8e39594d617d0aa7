"""Deletion and insertion curves of a heat map (RISE, Petsiuk et al. 2018, arXiv:1806.07421)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Shares of the places that are replaced.
SHARES = tuple(step / 10 for step in range(11))


def deletion_and_insertion(
    score: Callable[[Tensor], list[float]], values: Tensor, neutral: Tensor, heat: NDArray[np.float32], batch: int = 11
) -> tuple[list[float], list[float]]:
    """Return the probability of a sentence while the hottest places are deleted, and while they are inserted.

    Args:
        score: inputs (N, C, [D,] H, W) -> log-probabilities.
        values: the input, (C, [D,] H, W).
        neutral: an input of the same shape without content, which deletion ends with and insertion begins with.
        heat: on the same grid, ([D,] H, W); of equal places, the earlier ones come first.
        batch: inputs that are run at once.

    Returns:
        two lists of probabilities, one for each of `SHARES`.
    """
    order = np.argsort(-heat, axis=None, kind="stable")
    rank = np.empty(heat.size, dtype=np.int64)
    rank[order] = np.arange(heat.size)
    place = torch.from_numpy(rank).view(heat.shape)
    hot = [place < round(share * heat.size) for share in SHARES]
    versions = [torch.where(mask, neutral, values) for mask in hot]
    versions += [torch.where(mask, values, neutral) for mask in hot]
    found: list[float] = []
    for start in range(0, len(versions), batch):
        found += [math.exp(value) for value in score(torch.stack(versions[start : start + batch]))]
    return found[: len(SHARES)], found[len(SHARES) :]


def area(curve: list[float]) -> float:
    """Return the area under a curve over `SHARES`, by trapezoids."""
    return float(np.trapezoid(curve, SHARES))
