"""Poolings of a grid of features to a smaller grid."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, avg_pool3d

from medmvl.errors import ModelError
from medmvl.models.grid import Grid
from medmvl.models.grid_rules import averaged_slices, reduced, spatial_factors
from medmvl.registry import Registry

POOLINGS: Registry[type[PoolingSpec]] = Registry("pooling")


class PoolingSpec(BaseModel):
    """Settings of a pooling; subclasses add their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str

    def output_grid(self, grid: Grid) -> Grid:
        """Return the grid after pooling.

        Raises:
            ModelError: if this pooling cannot take `grid`.
        """
        raise NotImplementedError

    def output_size(self, hidden_size: int, grid: Grid) -> int:
        """Return the width of a pooled token, given that of a feature."""
        return hidden_size

    def build(self, hidden_size: int, grid: Grid) -> nn.Module:
        """Return a module (N, tokens, hidden_size) -> (N, output_grid(grid).tokens, output_size(hidden_size))."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return self.model_dump(mode="json")


@POOLINGS.register("none")
class NoPooling(PoolingSpec):
    """Keeps every token."""

    def output_grid(self, grid: Grid) -> Grid:
        """Return `grid` itself."""
        return grid

    def build(self, hidden_size: int, grid: Grid) -> nn.Module:
        """Return the identity."""
        return nn.Identity()


@POOLINGS.register("average")
class AverageSpec(PoolingSpec):
    """Averages over the slices: (d, h, w) -> (h, w), the paper's 2D-Avg strategy."""

    def output_grid(self, grid: Grid) -> Grid:
        """Drop the first axis."""
        return averaged_slices(grid)

    def build(self, hidden_size: int, grid: Grid) -> nn.Module:
        """Return the averaging module."""
        self.output_grid(grid)
        return AverageOverSlices(grid)


class AverageOverSlices(nn.Module):
    """(N, D*t, C) -> (N, t, C)."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self._per_slice = grid.tokens // grid.shape[0]

    def forward(self, features: Tensor) -> Tensor:
        """Average tokens at the same place of all slices: (N, D*t, C) -> (N, t, C)."""
        return features.unflatten(1, (-1, self._per_slice)).mean(1)


@POOLINGS.register("spatial")
class SpatialSpec(PoolingSpec):
    """Average pooling on the grid (M3D, arXiv 2404.00578).

    Attributes:
        factor: window and stride, one number or one per axis.
    """

    factor: int | tuple[int, ...] = 2

    def factors(self, grid: Grid) -> tuple[int, ...]:
        """Return the factor per axis of `grid`."""
        return spatial_factors(self.factor, grid)

    def output_grid(self, grid: Grid) -> Grid:
        """Divide every axis by its factor; a remainder is dropped, as average pooling does."""
        return reduced(grid, self.factors(grid))

    def build(self, hidden_size: int, grid: Grid) -> nn.Module:
        """Return the pooling module."""
        return SpatialPooling(grid.shape, self.factors(grid))


class SpatialPooling(nn.Module):
    """(N, prod(grid), C) -> (N, prod(grid // factor), C)."""

    def __init__(self, shape: tuple[int, ...], factors: tuple[int, ...]) -> None:
        super().__init__()
        self._shape, self._factors = shape, factors

    def forward(self, features: Tensor) -> Tensor:
        """Pool on the grid: (N, prod(grid), C) -> (N, prod(grid // factor), C)."""
        grid = features.transpose(1, 2).unflatten(2, self._shape)
        pool = avg_pool3d if len(self._shape) == 3 else avg_pool2d
        return pool(grid, self._factors).flatten(2).transpose(1, 2)


@POOLINGS.register("attention")
class AttentionSpec(PoolingSpec):
    """Learned queries attend to all tokens (the paper's 2D-Attn strategy).

    Attributes:
        queries: (h, w) of the output; default: the in-plane grid of the encoder.
        heads: attention heads; must divide the encoder's width.
        query_std: standard deviation of new queries. With the published 0.02 each of them averages all tokens at first,
            which suffices for a pretrained encoder. With an encoder that starts from random weights use 1, so that the
            queries differ from the start.
    """

    queries: tuple[int, int] | None = None
    heads: int = 8
    query_std: float = 0.02

    def output_grid(self, grid: Grid) -> Grid:
        """Return the grid of the queries."""
        return Grid(self.queries or grid.plane)

    def build(self, hidden_size: int, grid: Grid) -> nn.Module:
        """Return the cross-attention module."""
        if hidden_size % self.heads:
            raise ModelError(
                f"The pooling 'attention' has {self.heads} heads, which do not divide the encoder's width {hidden_size}. "
                "Set `heads` to a divisor."
            )
        return AttentionPooling(hidden_size, self.output_grid(grid).tokens, self.heads, self.query_std)


class AttentionPooling(nn.Module):
    """(N, T, C) -> (N, queries, C) by one multi-head cross-attention."""

    def __init__(self, hidden_size: int, queries: int, heads: int, query_std: float = 0.02) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(queries, hidden_size))
        nn.init.trunc_normal_(self.query, std=query_std)
        self.attn = nn.MultiheadAttention(hidden_size, heads, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        """Attend from the queries to the features: (N, T, C) -> (N, queries, C)."""
        query = self.query.to(features.dtype).expand(features.shape[0], -1, -1)
        return self.attn(query, features, features, need_weights=False)[0]
