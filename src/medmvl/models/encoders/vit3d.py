"""A small 3D vision transformer with fresh weights: what a volume encoder looks like when nothing is inherited."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_layers import GradientCheckpointingLayer

from medmvl.models.encoders.base import ENCODERS, EncoderModule, EncoderSpec, divided
from medmvl.models.encoders.positions import resize_positions
from medmvl.models.visual_tokens import Grid


@ENCODERS.register("vit3d")
class ViT3DSpec(EncoderSpec):
    """A pre-norm vision transformer (arXiv 2010.11929) on cuboid patches, without class token.

    Attributes:
        size: native (D, H, W) in voxels.
        patch: patch (d, h, w) in voxels.
        in_channels: channels of a volume (1, or one per window).
        width, layers, heads, mlp_ratio: the transformer's shape.
    """

    modality: ClassVar[Literal["image", "volume"]] = "volume"

    size: tuple[int, int, int] = (32, 256, 256)
    patch: tuple[int, int, int] = (4, 16, 16)
    in_channels: int = 1
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return self.width

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.in_channels

    @property
    def input_size(self) -> tuple[int, ...]:
        """Native (D, H, W)."""
        return self.size

    def grid(self, size: tuple[int, ...] | None = None) -> Grid:
        """Return (D/d, H/h, W/w)."""
        return Grid(divided(size or self.size, self.patch, "The encoder 'vit3d'"))

    def build(self) -> ViT3D:
        """Return the module with fresh weights."""
        return ViT3D(self)


class ViT3D(EncoderModule):
    """(N, C, D, H, W) -> (N, d*h*w, width), patches in (d, h, w) order."""

    def __init__(self, spec: ViT3DSpec) -> None:
        super().__init__()
        self._grid = spec.grid().shape
        self.patch_embedding = nn.Conv3d(spec.in_channels, spec.width, spec.patch, stride=spec.patch)
        self.position_embedding = nn.Parameter(torch.zeros(1, spec.grid().tokens, spec.width))
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        hidden = int(spec.width * spec.mlp_ratio)
        self.blocks = nn.ModuleList(Block(spec.width, spec.heads, hidden) for _ in range(spec.layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed the patches, add positions (interpolated to another grid if need be), run the blocks."""
        patches = self.patch_embedding(pixels)
        positions = resize_positions(self.position_embedding, self._grid, tuple(patches.shape[2:]), "vit3d")
        x = patches.flatten(2).transpose(1, 2) + positions
        for block in self.blocks:
            x = block(x)
        return x


class Block(GradientCheckpointingLayer):
    """Pre-norm self-attention and MLP with exact GELU."""

    def __init__(self, width: int, heads: int, hidden: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self._heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self._heads, -1))  # (N, T, 3, heads, head width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.mlp(self.norm2(x))
