"""High-resolution images as a thumbnail and tiles (LLaVA-NeXT's idea, with a fixed layout: the token count is bounded)."""

from __future__ import annotations

import torch
from pydantic import field_validator
from torch import Tensor
from torch.nn.functional import interpolate

from medmvl.errors import ModelError
from medmvl.models.encoders.encoder import ENCODERS, EncoderModule
from medmvl.models.encoders.wrapper import WrapperSpec
from medmvl.models.grid import Grid
from medmvl.models.grid_rules import stacked, tile_size


@ENCODERS.register("tiled")
class TiledSpec(WrapperSpec):
    """Settings of a 2D encoder that runs over a thumbnail of the image, then over its tiles, row by row.

    The grid is a stack (1 + tiles, h, w): poolings for stacks of slices fit (attention, spatial with factor (1, 2, 2)).

    Attributes:
        tiles: (rows, columns); the image has rows x columns times the encoder's own size.
    """

    tiles: tuple[int, int] = (2, 2)

    @field_validator("tiles")
    @classmethod
    def _at_least_one(cls, value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < 1:
            raise ModelError(f"tiled needs at least one row and one column of tiles, got {value}.")
        return value

    @property
    def input_size(self) -> tuple[int, ...]:
        """Native (H, W): the encoder's, times the tiles."""
        height, width = self.inner.input_size
        return height * self.tiles[0], width * self.tiles[1]

    def grid(self, size: tuple[int, ...] | None = None) -> Grid:
        """Return (1 + tiles, h, w) of the thumbnail and the tiles."""
        rows, columns = self.tiles
        return stacked(self.inner.grid(self.tile_size(size)), 1 + rows * columns)

    def tile_size(self, size: tuple[int, ...] | None) -> tuple[int, int]:
        """Return the (H, W) of a tile."""
        return tile_size(size or self.input_size, self.tiles)

    def wrap(self, encoder: EncoderModule) -> TiledEncoder:
        """Return this encoder around the 2D encoder's module."""
        return TiledEncoder(self, encoder)


class TiledEncoder(EncoderModule):
    """(N, C, H, W) -> (N, (1 + tiles) * tokens, hidden_size), the thumbnail first."""

    def __init__(self, spec: TiledSpec, encoder: EncoderModule) -> None:
        super().__init__()
        self.encoder = encoder
        self._spec = spec

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images: (N, C, H, W) -> (N, (1 + tiles) * tokens, hidden_size)."""
        height, width = self._spec.tile_size(tuple(pixels.shape[-2:]))
        thumbnail = interpolate(pixels.float(), size=(height, width), mode="bicubic", antialias=True).to(pixels.dtype)
        tiles = pixels.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (N, C, rows, h, columns, w)
        tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (N, tiles, C, h, w)
        views = torch.cat([thumbnail.unsqueeze(1), tiles], dim=1)
        features = self.encoder(views.flatten(0, 1))
        return features.unflatten(0, (len(pixels), -1)).flatten(1, 2)
