"""M3D-CLIP's vision transformer (Bai et al. 2024, arXiv 2404.00578; weights GoodBaiBai88/M3D-CLIP).

The architecture is MONAI's ViT with "perceptron" patches: pre-norm blocks, exact GELU, no bias on qkv, positions added
before the class token is put first. Its final norm is not applied: features are a layer's output, as MedM-VL takes them.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from medmvl.errors import ModelError
from medmvl.models.encoders.encoder import ENCODERS
from medmvl.models.encoders.positions import resize_positions
from medmvl.models.encoders.pretrained import read_config
from medmvl.models.encoders.vit3d import Block
from medmvl.models.encoders.volume_transformer import ClassTokenSpec, ClassTokenTransformer, cut_cuboids


@ENCODERS.register("m3dclip")
class M3DClipSpec(ClassTokenSpec):
    """Settings of M3D-CLIP's vision part.

    Attributes:
        in_channels: channels of a volume.
    """

    in_channels: int = 1

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.in_channels

    def build(self) -> M3DClip:
        """Return the module with fresh weights."""
        return M3DClip(self)

    def pretrained_key(self, name: str) -> str | None:
        """Return our name of a published tensor; None for the text tower, the heads and the layers not used."""
        if not name.startswith("vision_encoder."):
            return None
        name = name.removeprefix("vision_encoder.")
        if layer := re.match(r"blocks\.(\d+)\.", name):
            if int(layer[1]) >= self.used_layers:
                return None
            for published, ours in _BLOCK.items():
                name = name.replace(f".{published}.", f".{ours}.")
            return name
        return None if name.startswith("norm.") else _OUTSIDE.get(name, name)

    @classmethod
    def spec_from_pretrained(cls, folder: str, **settings: Any) -> M3DClipSpec:
        """Read the sizes from the folder's config.json; its code is not run."""
        config = read_config(folder, "M3D-CLIP encoder")
        if config.get("pos_embed", "perceptron") != "perceptron":
            raise ModelError(f"M3D-CLIP with pos_embed {config['pos_embed']!r} is not supported, only 'perceptron'.")
        published = {key: config[theirs] for key, theirs in _CONFIG.items() if theirs in config}
        return cls(**{"name": "m3dclip", **published, **settings})


_CONFIG = {
    "size": "img_size",
    "patch": "patch_size",
    "in_channels": "in_channels",
    "width": "hidden_size",
    "layers": "num_layers",
    "heads": "num_heads",
    "mlp": "mlp_dim",
}
_OUTSIDE = {
    "patch_embedding.patch_embeddings.1.weight": "patch_embedding.weight",
    "patch_embedding.patch_embeddings.1.bias": "patch_embedding.bias",
    "patch_embedding.position_embeddings": "position_embedding",
}
_BLOCK = {"attn.qkv": "qkv", "attn.out_proj": "out", "mlp.linear1": "mlp.0", "mlp.linear2": "mlp.2"}


class M3DClip(ClassTokenTransformer):
    """(N, C, D, H, W) -> (N, patches [+ 1], width), patches in (d, h, w) order, the class token first."""

    def __init__(self, spec: M3DClipSpec) -> None:
        super().__init__(spec, positions=torch.Size(spec.grid().shape).numel())
        self.patch_embedding = nn.Linear(spec.in_channels * torch.Size(spec.patch).numel(), spec.width)
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.heads, spec.mlp, qkv_bias=False) for _ in range(spec.used_layers)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode volumes: (N, C, D, H, W) -> (N, tokens, width). Positions are added before the class token."""
        x = self.patch_embedding(cut_cuboids(pixels, self._patch, "dhwc"))
        x = x + resize_positions(self.position_embedding, self._grid, self.grid_of(pixels), self._name)
        x = self.prepend_class_token(x)
        for block in self.blocks:
            x = block(x)
        return x[:, self._dropped :]
