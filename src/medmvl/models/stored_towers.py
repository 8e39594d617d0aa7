"""Sizes and grids of towers from their settings in a config.json, without torch and transformers.

Only settings as our models write them are understood; for others the caller builds a `TowerSpec`, which checks and completes
them. `transformers`, the encoder for any vision model, is of the second kind: its grid is found by running it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmvl.models.grid import Grid
from medmvl.models.grid_rules import (
    FAMILIES,
    averaged_slices,
    divided,
    feature_map,
    native_size,
    reduced,
    shuffle_factors,
    spatial_factors,
    stacked,
    tile_size,
)

#: Encoders on cuboid patches, of which some keep a class token with `select_feature: all`.
_CUBOID_ENCODERS = ("vit3d", "m3dclip", "medmclip")
_CNNS = ("resnet", "convnext", "convnextv2")


def stored_grids(settings: Mapping[str, Any]) -> tuple[tuple[int, ...], Grid, Grid]:
    """Return a tower's input size, the grid of its encoder and the grid of its connector.

    Raises:
        KeyError, TypeError, ValueError: if the settings are not complete, or of an encoder or pooling that is not known here.
        ModelError: if the sizes do not fit each other.
    """
    encoder = settings["encoder"]
    size = _ints(settings["size"]) if settings.get("size") else _input_size(encoder)
    grid = _encoder_grid(encoder, size)
    return size, grid, _pooled(settings["connector"]["pooling"], grid)


def _input_size(encoder: Mapping[str, Any]) -> tuple[int, ...]:
    name = encoder["name"]
    if name in _CUBOID_ENCODERS:
        return _ints(encoder["size"])
    if name == "slicewise":
        return *_ints([encoder["slices"]]), *_input_size(encoder["encoder"])
    if name == "tiled":
        return tuple(
            n * tiles for n, tiles in zip(_input_size(encoder["encoder"]), _pair(encoder["tiles"]), strict=True)
        )
    if name in _CNNS:
        return _pair(encoder["size"]) if encoder["size"] else native_size(encoder["vision_config"])
    return _pair([encoder["vision_config"]["image_size"]] * 2)


def _encoder_grid(encoder: Mapping[str, Any], size: tuple[int, ...]) -> Grid:
    name = encoder["name"]
    label = f"The encoder {name!r}"
    if name in _CUBOID_ENCODERS:
        prefix = int(encoder.get("select_feature") == "all")
        return Grid(divided(size, _ints(encoder["patch"]), label), num_prefix_tokens=prefix)
    if name == "slicewise":
        depth, *plane = size
        return stacked(_encoder_grid(encoder["encoder"], tuple(plane)), depth)
    if name == "tiled":
        rows, columns = tiles = _pair(encoder["tiles"])
        return stacked(_encoder_grid(encoder["encoder"], tile_size(size, tiles)), 1 + rows * columns)
    vision = encoder["vision_config"]
    if name in _CNNS:
        return _cnn_grid(name, vision, size)
    family = FAMILIES[vision["model_type"]]
    if name not in (family.encoder, "siglip2"):
        raise ValueError(name)
    kept = {"all": family.num_prefix_tokens(vision), "patch": 0}[encoder.get("select_feature", "patch")]
    return Grid(divided(size, _pair([vision["patch_size"]] * 2), label), num_prefix_tokens=kept)


def _cnn_grid(name: str, vision: Mapping[str, Any], size: tuple[int, ...]) -> Grid:
    stages = len(vision["depths"])
    if name != vision["model_type"] or len(vision["hidden_sizes"]) != stages or vision.get("mask_ratio"):
        raise ValueError(name)
    if vision.get("num_stages", stages) != stages:
        raise ValueError(name)
    return Grid(_ints(feature_map(vision, size)))


def _pooled(pooling: Mapping[str, Any], grid: Grid) -> Grid:
    name = pooling["name"]
    if name == "none":
        return grid
    if name == "average":
        return averaged_slices(grid)
    if name == "attention":
        return Grid(_pair(pooling["queries"]) if pooling["queries"] else grid.plane)
    if name == "perceiver":
        return Grid(_pair(pooling["queries"]))
    factor = pooling["factor"] if isinstance(pooling["factor"], int) else _ints(pooling["factor"])
    if name == "spatial":
        return reduced(grid, spatial_factors(factor, grid))
    if name == "pixel_shuffle":
        return reduced(grid, shuffle_factors(factor, grid), slicewise=grid.slicewise)
    raise ValueError(name)


def _ints(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not all(type(n) is int and n > 0 for n in values):
        raise TypeError(values)
    return tuple(values)


def _pair(values: Any) -> tuple[int, int]:
    first, second = _ints(values)
    return first, second
