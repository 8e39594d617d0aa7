"""The perceiver resampler (Flamingo, Alayrac et al. 2022, arXiv 2204.14198): learned latents read the features in layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medmvl.errors import ModelError
from medmvl.models.connectors.poolings import POOLINGS, PoolingSpec
from medmvl.models.grid import Grid


@POOLINGS.register("perceiver")
class PerceiverSpec(PoolingSpec):
    """Settings of the perceiver resampler, which has a fixed number of latents for any grid.

    Attributes:
        queries: (h, w) of the output, h * w latents.
        layers: cross-attention layers.
        heads: attention heads; must divide the encoder's width.
        mlp_ratio: hidden width of the feed-forward blocks, as a multiple of the encoder's width.
    """

    queries: tuple[int, int] = (8, 8)
    layers: int = 2
    heads: int = 8
    mlp_ratio: int = 4

    def output_grid(self, grid: Grid) -> Grid:
        """Return the grid of the latents."""
        return Grid(self.queries)

    def build(self, hidden_size: int, grid: Grid) -> nn.Module:
        """Return the resampler."""
        if hidden_size % self.heads:
            raise ModelError(
                f"The pooling 'perceiver' has {self.heads} heads, which do not divide the encoder's width {hidden_size}. "
                "Set `heads` to a divisor."
            )
        return PerceiverResampler(hidden_size, self)


class PerceiverResampler(nn.Module):
    """(N, T, C) -> (N, queries, C)."""

    def __init__(self, hidden_size: int, spec: PerceiverSpec) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(spec.queries[0] * spec.queries[1], hidden_size))
        nn.init.trunc_normal_(self.latents, std=0.02)
        self.layers = nn.ModuleList(
            PerceiverLayer(hidden_size, spec.heads, spec.mlp_ratio * hidden_size) for _ in range(spec.layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """Return the latents after the last layer: (N, T, C) -> (N, queries, C)."""
        latents = self.latents.to(features.dtype).expand(features.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, features)
        return self.norm(latents)


class PerceiverLayer(nn.Module):
    """Latents attend to features and latents together; then a feed-forward block."""

    def __init__(self, hidden_size: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm_latents = nn.LayerNorm(hidden_size)
        self.norm_features = nn.LayerNorm(hidden_size)
        self.attn = nn.MultiheadAttention(hidden_size, heads, batch_first=True)
        self.norm_mlp = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(nn.Linear(hidden_size, hidden), nn.GELU(), nn.Linear(hidden, hidden_size))

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """(N, Q, C), (N, T, C) -> (N, Q, C)."""
        query = self.norm_latents(latents)
        memory = torch.cat([self.norm_features(features), query], dim=1)
        latents = latents + self.attn(query, memory, memory, need_weights=False)[0]
        return latents + self.mlp(self.norm_mlp(latents))
