"""A small 3D vision transformer that starts from random weights."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from medmvl.errors import ModelError
from medmvl.models.encoders.encoder import ENCODERS, EncoderModule
from medmvl.models.encoders.positions import resize_positions
from medmvl.models.encoders.volume_transformer import VolumeTransformerSpec

#: The stem's channels are a multiple of the first, its group norms have the second; group norm, unlike batch norm, gives a
#: volume the same features in every batch.
_STEM_CHANNELS, _STEM_GROUPS = 8, 8


@ENCODERS.register("vit3d")
class ViT3DSpec(VolumeTransformerSpec):
    """A pre-norm vision transformer (arXiv 2010.11929) on cuboid patches, without class token.

    Attributes:
        in_channels: channels of a volume (1, or one per window).
        stem: how a patch becomes a token: "linear" (one strided convolution), or "conv", a stack of small strided
            convolutions, with which a transformer that starts from random weights learns sooner (arXiv 2106.14881);
            its patch sides are powers of two.
        mlp_ratio: hidden width of the feed-forward blocks over the width.
    """

    in_channels: int = 1
    stem: Literal["linear", "conv"] = "linear"
    mlp_ratio: float = 4.0

    @model_validator(mode="after")
    def _stem_fits(self) -> ViT3DSpec:
        if self.stem == "conv" and any(side & (side - 1) or side < 1 for side in self.patch):
            raise ModelError(
                f"The encoder 'vit3d' with the stem 'conv' halves its input step by step, so the sides of a patch are "
                f"powers of two, got {self.patch}. Choose another patch, or the stem 'linear'."
            )
        return self

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.in_channels

    def build(self) -> ViT3D:
        """Return the module with fresh weights."""
        return ViT3D(self)


class ViT3D(EncoderModule):
    """(N, C, D, H, W) -> (N, d*h*w, width), patches in (d, h, w) order."""

    def __init__(self, spec: ViT3DSpec) -> None:
        super().__init__()
        self._grid = spec.grid().shape
        self.patch_embedding = conv_stem(spec) if spec.stem == "conv" else linear_stem(spec)
        self.position_embedding = nn.Parameter(torch.zeros(1, spec.grid().tokens, spec.width))
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        hidden = int(spec.width * spec.mlp_ratio)
        self.blocks = nn.ModuleList(Block(spec.width, spec.heads, hidden) for _ in range(spec.layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode volumes: (N, C, D, H, W) -> (N, tokens, width). Positions are interpolated for another grid."""
        patches = self.patch_embedding(pixels)
        positions = resize_positions(self.position_embedding, self._grid, tuple(patches.shape[2:]), "vit3d")
        x = patches.flatten(2).transpose(1, 2) + positions
        for block in self.blocks:
            x = block(x)
        return x


def linear_stem(spec: ViT3DSpec) -> nn.Module:
    """Return one convolution that maps each patch separately: (N, C, D, H, W) -> (N, width, d, h, w)."""
    return nn.Conv3d(spec.in_channels, spec.width, spec.patch, stride=spec.patch)


def conv_stem(spec: ViT3DSpec) -> nn.Module:
    """Return 3x3x3 convolutions that halve the axes until a patch is one voxel: (N, C, D, H, W) -> (N, width, d, h, w).

    The channels double at every halving and reach half the width at the last one.
    """
    layers: list[nn.Module] = []
    left, channels = spec.patch, spec.in_channels
    halvings = max(side.bit_length() - 1 for side in spec.patch)
    for step in reversed(range(halvings)):
        stride = tuple(min(side, 2) for side in left)
        left = tuple(side // s for side, s in zip(left, stride, strict=True))  # type: ignore[assignment]
        wider = max(_STEM_CHANNELS, spec.width // 2 ** (step + 1) // _STEM_CHANNELS * _STEM_CHANNELS)
        layers += [
            nn.Conv3d(channels, wider, 3, stride=stride, padding=1),  # type: ignore[arg-type]
            nn.GroupNorm(_STEM_GROUPS, wider),
            nn.GELU(),
        ]
        channels = wider
    return nn.Sequential(*layers, nn.Conv3d(channels, spec.width, 1))


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
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.mlp(self.norm2(x))
