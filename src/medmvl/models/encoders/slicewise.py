"""Volume encoder that runs a 2D encoder over the slices (the paper's 2D-Avg and 2D-Attn strategies)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from medmvl.models.encoders.encoder import ENCODERS, EncoderModule
from medmvl.models.encoders.wrapper import WrapperSpec
from medmvl.models.grid import Grid
from medmvl.models.grid_rules import stacked


@ENCODERS.register("slicewise")
class SlicewiseSpec(WrapperSpec):
    """Settings of a 2D encoder that runs over every slice; a one-channel volume is repeated to the 2D encoder's channels.

    Attributes:
        slices: native number of slices D.
        slices_per_pass: number of slices that the encoder processes at once if none of its weights trains, which limits the
            memory of a large stack; 0: all.
    """

    modality: ClassVar[Literal["image", "volume"]] = "volume"

    slices: int
    slices_per_pass: int = 0

    @property
    def input_size(self) -> tuple[int, ...]:
        """Native (D, H, W)."""
        return self.slices, *self.inner.input_size

    def grid(self, size: tuple[int, ...] | None = None) -> Grid:
        """Return the grid (D, h, w), with the 2D encoder's prefix tokens in every slice."""
        depth, *plane = size or self.input_size
        return stacked(self.inner.grid(tuple(plane)), depth)

    def wrap(self, encoder: EncoderModule) -> SlicewiseEncoder:
        """Return this encoder around the 2D encoder's module."""
        return SlicewiseEncoder(self, encoder)


class SlicewiseEncoder(EncoderModule):
    """(N, C, D, H, W) -> (N, D * tokens per slice, hidden_size), slice after slice."""

    def __init__(self, spec: SlicewiseSpec, encoder: EncoderModule) -> None:
        super().__init__()
        self.encoder = encoder
        self._channels = spec.channels
        self._slices_per_pass = spec.slices_per_pass

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode volumes: (N, C, D, H, W) -> (N, D * tokens per slice, hidden_size)."""
        batch, channels, depth = pixels.shape[:3]
        slices = pixels.transpose(1, 2).flatten(0, 1)  # (N*D, C, H, W)
        if channels == 1:
            slices = slices.expand(-1, self._channels, -1, -1)
        if self._slices_per_pass and not torch.is_grad_enabled():
            features = torch.cat([self.encoder(part) for part in slices.split(self._slices_per_pass)])
        else:
            features = self.encoder(slices)
        return features.reshape(batch, depth * features.shape[1], features.shape[2])
