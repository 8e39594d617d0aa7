"""M3D-CLIP's vision transformer (Bai et al. 2024, arXiv 2404.00578; weights GoodBaiBai88/M3D-CLIP).

The architecture is MONAI's ViT with "perceptron" patches: pre-norm blocks, exact GELU, no bias on qkv, positions added
before the class token is put first. Its final norm is not applied: features are a layer's output, as MedM-VL takes them.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from medmvl.errors import ModelError
from medmvl.models.encoders.base import ENCODERS, EncoderModule, EncoderSpec, divided
from medmvl.models.encoders.cuboids import cuboids, layers_used
from medmvl.models.encoders.positions import resize_positions
from medmvl.models.encoders.published import load_published, read_config
from medmvl.models.encoders.vit3d import Block
from medmvl.models.visual_tokens import Grid


@ENCODERS.register("m3dclip")
class M3DClipSpec(EncoderSpec):
    """The vision part of M3D-CLIP.

    Attributes:
        size: native (D, H, W) in voxels.
        patch: patch (d, h, w) in voxels.
        in_channels: channels of a volume.
        width, layers, heads, mlp: the transformer's shape.
        select_layer: which layer's output is the feature; -1 is the last one.
        select_feature: "patch" drops the class token, "all" keeps it.
    """

    modality: ClassVar[Literal["image", "volume"]] = "volume"

    size: tuple[int, int, int] = (32, 256, 256)
    patch: tuple[int, int, int] = (4, 16, 16)
    in_channels: int = 1
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
        return self.in_channels

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
        shape = divided(size or self.size, self.patch, "The encoder 'm3dclip'")
        return Grid(shape, prefix=int(self.select_feature == "all"))

    def build(self) -> M3DClip:
        """Return the module with fresh weights."""
        return M3DClip(self)

    def published_key(self, name: str) -> str | None:
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

    @classmethod
    def from_pretrained(cls, folder: str, **settings: Any) -> tuple[EncoderSpec, EncoderModule]:
        """Return spec and module with a folder's weights."""
        spec = cls.spec_from_pretrained(folder, **settings)
        module = spec.build()
        load_published(module, folder, spec.published_key)
        return spec, module


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


class M3DClip(EncoderModule):
    """(N, C, D, H, W) -> (N, patches [+ 1], width), patches in (d, h, w) order, the class token first."""

    def __init__(self, spec: M3DClipSpec) -> None:
        super().__init__()
        self._patch = spec.patch
        self._grid = divided(spec.size, spec.patch, "The encoder 'm3dclip'")
        self._drop = int(spec.select_feature == "patch")
        voxels = spec.in_channels * torch.Size(spec.patch).numel()
        self.patch_embedding = nn.Linear(voxels, spec.width)
        self.position_embedding = nn.Parameter(torch.zeros(1, torch.Size(self._grid).numel(), spec.width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.heads, spec.mlp, qkv_bias=False) for _ in range(spec.used_layers)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed the patches, add positions, put the class token first, run the blocks."""
        grid = tuple(n // p for n, p in zip(pixels.shape[2:], self._patch, strict=True))
        x = self.patch_embedding(cuboids(pixels, self._patch, "dhwc"))
        x = x + resize_positions(self.position_embedding, self._grid, grid, "m3dclip")
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, self._drop :]
