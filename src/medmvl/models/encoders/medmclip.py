"""MedM-CLIP's vision transformer (MedM-VL, Shi et al. 2025, arXiv 2504.04323; weights shiym2000/MedM-CLIP-CT).

Patches are normalized before and after their linear embedding; the class token comes first, positions are added to it too;
the blocks are torch's encoder layers with their defaults, so post-norm and ReLU. In the reference implementation its
features are detached, so that tuning it has no effect; here gradients flow when its weights train.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from medmvl.models.encoders.encoder import ENCODERS
from medmvl.models.encoders.positions import resize_positions
from medmvl.models.encoders.pretrained import read_config
from medmvl.models.encoders.volume_transformer import ClassTokenSpec, ClassTokenTransformer, cut_cuboids


@ENCODERS.register("medmclip")
class MedMClipSpec(ClassTokenSpec):
    """Settings of MedM-CLIP's vision part; it takes one channel."""

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return 1

    def build(self) -> MedMClip:
        """Return the module with fresh weights."""
        return MedMClip(self)

    def pretrained_key(self, name: str) -> str | None:
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


_CONFIG = {
    "width": "hidden_size",
    "layers": "image_num_layers",
    "heads": "image_num_heads",
    "mlp": "image_mlp_dim",
}


class Layer(GradientCheckpointingLayer, nn.TransformerEncoderLayer):
    """torch's layer, whose activations may be recomputed."""


class MedMClip(ClassTokenTransformer):
    """(N, 1, D, H, W) -> (N, patches [+ 1], width), patches in (d, h, w) order, the class token first."""

    def __init__(self, spec: MedMClipSpec) -> None:
        super().__init__(spec, positions=torch.Size(spec.grid().shape).numel() + 1)
        voxels = torch.Size(spec.patch).numel()
        self.patch_embedding = nn.Sequential(
            nn.LayerNorm(voxels), nn.Linear(voxels, spec.width), nn.LayerNorm(spec.width)
        )
        self.layers = nn.ModuleList(
            Layer(spec.width, spec.heads, spec.mlp, dropout=0.0, batch_first=True) for _ in range(spec.used_layers)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode volumes: (N, 1, D, H, W) -> (N, tokens, width). The class token has a position, too."""
        x = self.prepend_class_token(self.patch_embedding(cut_cuboids(pixels, self._patch, "hwdc")))
        x = x + resize_positions(self.position_embedding, self._grid, self.grid_of(pixels), self._name)
        for layer in self.layers:
            x = layer(x)
        return x[:, self._dropped :]
