"""Rules by which encoders and poolings lay out their tokens: arithmetic on grids, without torch.

The specs of encoders and poolings call these functions. `medmvl checkpoint inspect` calls them as well, because importing the
specs imports torch and transformers, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medmvl.errors import ModelError
from medmvl.models.grid import Grid

#: Side of an image where neither the settings nor the config names one.
_USUAL_SIDE = 224


@dataclass(frozen=True, slots=True)
class VisionFamily:
    """Properties that differ between vision transformers (`model_type` of transformers).

    Attributes:
        encoder: the name under which recipes know it.
        num_prefix_tokens: config -> how many tokens stand before the patches (class, registers).
        final_norm: attribute of the model that holds the norm behind the last layer.
        interpolates: how positions are interpolated for another resolution: "flag" (by an argument of the forward pass) or
            "itself" (always).
    """

    encoder: str
    num_prefix_tokens: Callable[[dict[str, Any]], int]
    final_norm: str
    interpolates: Literal["flag", "itself"] = "itself"


def _registers(config: dict[str, Any]) -> int:
    return 1 + int(config.get("num_register_tokens", 4))


#: model_type -> family; checked against the modules of transformers 5.23.
FAMILIES: dict[str, VisionFamily] = {
    "siglip_vision_model": VisionFamily("siglip", lambda _: 0, "post_layernorm", "flag"),
    "clip_vision_model": VisionFamily("clip", lambda _: 1, "post_layernorm", "flag"),
    "dinov2": VisionFamily("dinov2", lambda _: 1, "layernorm"),
    "dinov2_with_registers": VisionFamily("dinov2", _registers, "layernorm"),
    "dinov3_vit": VisionFamily("dinov3", _registers, "norm"),
}


def divided(size: tuple[int, ...], patch: tuple[int, ...], encoder: str) -> tuple[int, ...]:
    """Return `size // patch` per axis.

    Raises:
        ModelError: if a size is not a multiple of its patch.
    """
    if len(size) != len(patch) or any(s % p or s < p for s, p in zip(size, patch, strict=False)):
        raise ModelError(
            f"{encoder} takes inputs whose size is a multiple of its patch {patch}, got {tuple(size)}. "
            f"Choose a size like {tuple(max(p, s // p * p) for s, p in zip(size, patch, strict=False))}."
        )
    return tuple(s // p for s, p in zip(size, patch, strict=True))


def native_size(vision_config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the (H, W) that a vision config of transformers names, else the usual one."""
    side = vision_config.get("image_size", _USUAL_SIDE)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return int(height), int(width)


def feature_map(vision_config: Mapping[str, Any], size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the (h, w) of the last feature map of a CNN of transformers for an image of `size`; others raise KeyError.

    A ResNet (He et al. 2016) halves twice before its first stage and once at each later one, rounding up, for its
    convolutions are padded; a ConvNeXt (Liu et al. 2022) divides by its patch and halves at each later stage, rounding down.
    """
    kind = vision_config["model_type"]
    stages = len(vision_config["depths"])
    if kind == "resnet":
        halvings = 1 + stages + bool(vision_config.get("downsample_in_first_stage", False))
        return tuple(-(-side // 2**halvings) for side in size)
    if kind in ("convnext", "convnextv2"):
        return tuple(side // (vision_config["patch_size"] * 2 ** (stages - 1)) for side in size)
    raise KeyError(kind)


def stacked(inner: Grid, count: int) -> Grid:
    """Return the grid (count, h, w) of `count` images that an encoder with the grid `inner` (h, w) sees one by one."""
    return Grid((count, *inner.shape), num_prefix_tokens=inner.num_prefix_tokens, slicewise=True)


def tile_size(size: tuple[int, ...], tiles: tuple[int, int]) -> tuple[int, int]:
    """Return the (H, W) of a tile of an image of `size` (H, W) in (rows, columns) tiles.

    Raises:
        ModelError: if it cannot be cut into equal ones.
    """
    height, width = size
    rows, columns = tiles
    if height % rows or width % columns:
        raise ModelError(f"An image of {height}x{width} cannot be cut into {rows}x{columns} equal tiles.")
    return height // rows, width // columns


def averaged_slices(grid: Grid) -> Grid:
    """Return the grid (h, w) after the average over the slices of (d, h, w).

    Raises:
        ModelError: if there are no slices, or a class token that belongs to none of them.
    """
    if len(grid.shape) != 3:
        raise ModelError(f"The pooling 'average' averages over slices and needs a 3D grid, got {grid}.")
    if grid.num_prefix_tokens and not grid.slicewise:
        raise ModelError(
            f"The pooling 'average' cannot put the class token of the grid {grid} into a slice (select_feature: patch)."
        )
    return Grid(grid.plane, num_prefix_tokens=grid.num_prefix_tokens)


def spatial_factors(factor: int | tuple[int, ...], grid: Grid) -> tuple[int, ...]:
    """Return the factor per axis by which average pooling divides a grid.

    Raises:
        ModelError: if it does not fit the grid.
    """
    axes = len(grid.shape)
    factors = (factor,) * axes if isinstance(factor, int) else factor
    if len(factors) != axes or grid.num_prefix_tokens or any(g < f for g, f in zip(grid.shape, factors, strict=False)):
        raise ModelError(
            f"The pooling 'spatial' with factor {factor} does not fit the grid {grid}: it needs one factor per "
            "axis, none larger than the grid, and no class token (select_feature: patch)."
        )
    return factors


def shuffle_factors(factor: int | tuple[int, ...], grid: Grid) -> tuple[int, ...]:
    """Return the sides per axis of the blocks that pixel shuffle puts into one token; a stack keeps its slices apart.

    Raises:
        ModelError: if they do not fit the grid.
    """
    if isinstance(factor, int):
        factors = (1, *(factor,) * 2) if grid.slicewise else (factor,) * len(grid.shape)
    else:
        factors = factor
    fits = len(factors) == len(grid.shape) and not any(n % f for n, f in zip(grid.shape, factors, strict=False))
    if not fits or grid.num_prefix_tokens:
        raise ModelError(
            f"The pooling 'pixel_shuffle' with factor {factor} does not fit the grid {grid}: every axis must be a "
            "multiple of its factor, and there must be no class token (select_feature: patch)."
        )
    return factors


def reduced(grid: Grid, factors: tuple[int, ...], *, slicewise: bool = False) -> Grid:
    """Return the grid with every axis divided by its factor; a remainder is dropped."""
    return Grid(tuple(n // f for n, f in zip(grid.shape, factors, strict=True)), slicewise=slicewise)
