"""Pixel shuffle: neighboring tokens become one wider token, so nothing is averaged away (as in InternVL, SmolVLM)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from medmvl.models.connectors.poolings import POOLINGS, PoolingSpec
from medmvl.models.grid import Grid
from medmvl.models.grid_rules import reduced, shuffle_factors


@POOLINGS.register("pixel_shuffle")
class PixelShuffleSpec(PoolingSpec):
    """Space to depth: a block of tokens is laid side by side in one token; the projector makes it the LLM's width.

    Attributes:
        factor: side of the block, one number for the in-plane axes (a stack keeps its slices apart) or one per axis.
    """

    factor: int | tuple[int, ...] = 2

    def factors(self, grid: Grid) -> tuple[int, ...]:
        """Return the factor per axis of `grid`."""
        return shuffle_factors(self.factor, grid)

    def output_grid(self, grid: Grid) -> Grid:
        """Divide every axis by its factor."""
        return reduced(grid, self.factors(grid), slicewise=grid.slicewise)

    def output_size(self, hidden_size: int, grid: Grid) -> int:
        """Return the width times the size of a block."""
        return hidden_size * math.prod(self.factors(grid))

    def build(self, hidden_size: int, grid: Grid) -> nn.Module:
        """Return the rearranging module; it has no weights."""
        return PixelShuffle(grid.shape, self.factors(grid))


class PixelShuffle(nn.Module):
    """(N, prod(grid), C) -> (N, prod(grid // factors), C * prod(factors))."""

    def __init__(self, shape: tuple[int, ...], factors: tuple[int, ...]) -> None:
        super().__init__()
        self._shape, self._factors = shape, factors

    def forward(self, features: Tensor) -> Tensor:
        """Move each block of tokens into one: (N, prod(grid), C) -> (N, prod(grid // factors), C * prod(factors))."""
        axes = len(self._shape)
        sizes = [size for n, f in zip(self._shape, self._factors, strict=True) for size in (n // f, f)]
        split = features.unflatten(1, sizes)  # (N, n1, f1, n2, f2, ..., C)
        blocks = [1 + 2 * axis for axis in range(axes)]
        inside = [2 + 2 * axis for axis in range(axes)]
        return split.permute(0, *blocks, *inside, 2 * axes + 1).flatten(axes + 1).flatten(1, axes)
