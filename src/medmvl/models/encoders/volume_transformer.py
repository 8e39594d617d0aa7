"""Base classes of the 3D vision transformers: cuboid patches, the choice of a layer, pretrained weights."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from medmvl.errors import ModelError
from medmvl.models.encoders.encoder import EncoderModule, EncoderSpec
from medmvl.models.encoders.pretrained import load_pretrained_weights
from medmvl.models.grid import Grid
from medmvl.models.grid_rules import divided


class VolumeTransformerSpec(EncoderSpec):
    """Settings of a vision transformer on cuboid patches.

    Attributes:
        size: native (D, H, W) in voxels.
        patch: patch (d, h, w) in voxels.
        width, layers, heads: the transformer's shape.
    """

    modality: ClassVar[Literal["image", "volume"]] = "volume"

    size: tuple[int, int, int] = (32, 256, 256)
    patch: tuple[int, int, int] = (4, 16, 16)
    width: int = 768
    layers: int = 12
    heads: int = 12

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return self.width

    @property
    def input_size(self) -> tuple[int, ...]:
        """Native (D, H, W)."""
        return self.size

    def grid(self, size: tuple[int, ...] | None = None) -> Grid:
        """Return the grid (D/d, H/h, W/w)."""
        return Grid(divided(size or self.size, self.patch, f"The encoder {self.name!r}"))


class ClassTokenSpec(VolumeTransformerSpec):
    """Settings of a pretrained volume transformer with a class token.

    Attributes:
        mlp: hidden width of the feed-forward blocks.
        select_layer: index of the layer whose output is the feature; -1 is the last one.
        select_feature: "patch" drops the class token, "all" keeps it.
    """

    mlp: int = 3072
    select_layer: int = -1
    select_feature: Literal["all", "patch"] = "patch"

    @property
    def used_layers(self) -> int:
        """Layers that run; those behind the selected one are dropped."""
        return count_used_layers(self.select_layer, self.layers, self.name)

    def grid(self, size: tuple[int, ...] | None = None) -> Grid:
        """Return the grid (D/d, H/h, W/w), with one prefix token if the class token is kept."""
        return Grid(super().grid(size).shape, num_prefix_tokens=int(self.select_feature == "all"))

    @classmethod
    def spec_from_pretrained(cls, folder: str, **settings: Any) -> Self:
        """Return the spec that the folder's config.json describes; its code is not run."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, folder: str, **settings: Any) -> tuple[EncoderSpec, EncoderModule]:
        """Return spec and module with a folder's weights."""
        spec = cls.spec_from_pretrained(folder, **settings)
        module = spec.build()
        load_pretrained_weights(module, folder, spec.pretrained_key)
        return spec, module


class ClassTokenTransformer(EncoderModule):
    """(N, C, D, H, W) -> (N, patches [+ 1], width), patches in (d, h, w) order, the class token first.

    Subclasses add the layers and `forward`.
    """

    def __init__(self, spec: ClassTokenSpec, positions: int) -> None:
        """Make what all of these encoders have; `positions` is the length of the position table."""
        super().__init__()
        self._name, self._patch, self._grid = spec.name, spec.patch, spec.grid().shape
        self._dropped = int(spec.select_feature == "patch")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.position_embedding = nn.Parameter(torch.zeros(1, positions, spec.width))
        nn.init.trunc_normal_(self.position_embedding, std=0.02)

    def grid_of(self, pixels: Tensor) -> tuple[int, ...]:
        """Return the grid (D/d, H/h, W/w) of an input (N, C, D, H, W)."""
        return tuple(n // p for n, p in zip(pixels.shape[2:], self._patch, strict=True))

    def prepend_class_token(self, tokens: Tensor) -> Tensor:
        """(N, T, width) -> (N, 1 + T, width)."""
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)


def cut_cuboids(volumes: Tensor, patch: tuple[int, int, int], order: str) -> Tensor:
    """Cut volumes into flattened patches.

    Args:
        volumes: (N, C, D, H, W).
        patch: (d, h, w) in voxels.
        order: the axes inside a patch, slowest first: a permutation of "dhwc". It must be the one of the weights.

    Returns:
        (N, patches, d*h*w*C), patches in (D, H, W) order.
    """
    depth, height, width = patch
    # (N, C, D/d, d, H/h, h, W/w, w)
    split = volumes.unflatten(4, (-1, width)).unflatten(3, (-1, height)).unflatten(2, (-1, depth))
    axis = {"c": 1, "d": 3, "h": 5, "w": 7}
    return split.permute(0, 2, 4, 6, *(axis[letter] for letter in order)).flatten(4).flatten(1, 3)


def count_used_layers(select_layer: int, layers: int, encoder: str) -> int:
    """Return how many layers must run for `select_layer`, an index into the layers' outputs (-1: the last one).

    Raises:
        ModelError: if there is no such layer.
    """
    used = select_layer + 1 if select_layer >= 0 else layers + 1 + select_layer
    if not 0 < used <= layers:
        raise ModelError(
            f"select_layer {select_layer} is not one of the {layers} layers of {encoder!r} (0..{layers - 1}, or "
            f"-1..-{layers})."
        )
    return used
