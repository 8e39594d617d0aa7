"""MedM-CLIP's vision transformer (MedM-VL, Shi et al. 2025, arXiv 2504.04323; weights shiym2000/MedM-CLIP-CT).

Patches are normalised before and after their linear embedding; the class token comes first, positions are added to it too;
the blocks are torch's encoder layers with their defaults, so post-norm and ReLU. In the reference implementation its
features are detached, so that tuning it has no effect; here gradients flow when its weights train.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from medmvl.models.encoders.base import ENCODERS, EncoderModule, EncoderSpec, divided
from medmvl.models.encoders.cuboids import cuboids, layers_used
from medmvl.models.encoders.positions import resize_positions
from medmvl.models.encoders.published import load_published, read_config
from medmvl.models.visual_tokens import Grid


@ENCODERS.register("medmclip")
class MedMClipSpec(EncoderSpec):
    """The vision part of MedM-CLIP; one channel.

    Attributes:
        size: native (D, H, W) in voxels.
        patch: patch (d, h, w) in voxels.
        width, layers, heads, mlp: the transformer's shape.
        select_layer: which layer's output is the feature; -1 is the last one.
        select_feature: "patch" drops the class token, "all" keeps it.
    """

    modality: ClassVar[Literal["image", "volume"]] = "volume"

    size: tuple[int, int, int] = (32, 256, 256)
    patch: tuple[int, int, int] = (4, 16, 16)
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    select_layer: int = -1
    select_feature: Literal["all", "patch"] = "patch"

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return self.width

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return 1

    @property
    def input_size(self) -> tuple[int, ...]:
        """Native (D, H, W)."""
        return self.size

    @property
    def used_layers(self) -> int:
        """Layers that run; those behind the selected one are dropped."""
        return layers_used(self.select_layer, self.layers, self.name)

    def grid(self, size: tuple[int, ...] | None = None) -> Grid:
        """Return (D/d, H/h, W/w), with the class token as prefix if it is kept."""
        shape = divided(size or self.size, self.patch, "The encoder 'medmclip'")
        return Grid(shape, prefix=int(self.select_feature == "all"))

    def build(self) -> MedMClip:
        """Return the module with fresh weights."""
        return MedMClip(self)

    def published_key(self, name: str) -> str | None:
        """Return our name of a published tensor; None for the text tower, the head and the layers not used."""
        if not name.startswith("vision_encoder."):
            return None
        name = name.removeprefix("vision_encoder.")
        layer = re.match(r"transformer_layers\.(\d+)\.", name)
        if name.startswith("mlp_head.") or (layer and int(layer[1]) >= self.used_layers):
            return None
        # The published sequence begins with a parameterless rearrangement.
        name = re.sub(r"^to_patch_embedding\.(\d)", lambda match: f"patch_embedding.{int(match[1]) - 1}", name)
        return re.sub(r"^transformer_layers\.", "layers.", name.replace("pos_embedding", "position_embedding"))

    @classmethod
    def spec_from_pretrained(cls, folder: str, **settings: Any) -> MedMClipSpec:
        """Read the sizes from the folder's config.json; its code is not run."""
        config = read_config(folder, "MedM-CLIP encoder")
        side, frames = config.get("image_size", 256), config.get("frame_size", 32)
        patch, frame_patch = config.get("image_patch_size", 16), config.get("frame_patch_size", 4)
        published = {ours: config[theirs] for ours, theirs in _CONFIG.items() if theirs in config}
        size = {"size": (frames, side, side), "patch": (frame_patch, patch, patch)}
        return cls(**{"name": "medmclip", **size, **published, **settings})

    @classmethod
    def from_pretrained(cls, folder: str, **settings: Any) -> tuple[EncoderSpec, EncoderModule]:
        """Return spec and module with a folder's weights."""
        spec = cls.spec_from_pretrained(folder, **settings)
        module = spec.build()
        load_published(module, folder, spec.published_key)
        return spec, module


_CONFIG = {
    "width": "hidden_size",
    "layers": "image_num_layers",
    "heads": "image_num_heads",
    "mlp": "image_mlp_dim",
}


class Layer(GradientCheckpointingLayer, nn.TransformerEncoderLayer):
    """torch's layer, whose activations may be recomputed."""


class MedMClip(EncoderModule):
    """(N, 1, D, H, W) -> (N, patches [+ 1], width), patches in (d, h, w) order, the class token first."""

    def __init__(self, spec: MedMClipSpec) -> None:
        super().__init__()
        self._patch = spec.patch
        self._grid = divided(spec.size, spec.patch, "The encoder 'medmclip'")
        self._drop = int(spec.select_feature == "patch")
        voxels = torch.Size(spec.patch).numel()
        self.patch_embedding = nn.Sequential(
            nn.LayerNorm(voxels), nn.Linear(voxels, spec.width), nn.LayerNorm(spec.width)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.position_embedding = nn.Parameter(torch.zeros(1, torch.Size(self._grid).numel() + 1, spec.width))
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        self.layers = nn.ModuleList(
            Layer(spec.width, spec.heads, spec.mlp, dropout=0.0, batch_first=True) for _ in range(spec.used_layers)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed the patches, put the class token first, add positions, run the layers."""
        grid = tuple(n // p for n, p in zip(pixels.shape[2:], self._patch, strict=True))
        x = self.patch_embedding(cuboids(pixels, self._patch, "hwdc"))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + resize_positions(self.position_embedding, self._grid, grid, "medmclip")
        for layer in self.layers:
            x = layer(x)
        return x[:, self._drop :]
