"""A 2D encoder becomes a volume encoder by running over the slices (the paper's 2D-Avg and 2D-Attn strategies)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import field_validator
from torch import Tensor

from medmvl.errors import ModelError
from medmvl.models.encoders.base import ENCODERS, EncoderModule, EncoderSpec, encoder_spec
from medmvl.models.visual_tokens import Grid


@ENCODERS.register("slicewise")
class SlicewiseSpec(EncoderSpec):
    """Runs a 2D encoder over every slice.

    Attributes:
        encoder: settings of the 2D encoder, with its `name`.
        slices: native number of slices D.
        slices_per_pass: how many slices go through the encoder at once when nothing is trained in it; bounds the
            memory of a large stack. 0 means all.
    """

    modality: ClassVar[Literal["image", "volume"]] = "volume"

    encoder: dict[str, Any]
    slices: int
    slices_per_pass: int = 0

    @field_validator("encoder")
    @classmethod
    def _is_2d(cls, value: dict[str, Any]) -> dict[str, Any]:
        if encoder_spec(value).modality != "image":
            raise ModelError(f"slicewise needs a 2D encoder, got {value['name']!r}.")
        return value

    @property
    def inner(self) -> EncoderSpec:
        """The spec of the 2D encoder."""
        return encoder_spec(self.encoder)

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return self.inner.hidden_size

    @property
    def channels(self) -> int:
        """Number of input channels of the 2D encoder; a one-channel volume is repeated to it."""
        return self.inner.channels

    @property
    def input_size(self) -> tuple[int, ...]:
        """Native (D, H, W)."""
        return self.slices, *self.inner.input_size

    def grid(self, size: tuple[int, ...] | None = None) -> Grid:
        """Return (D, h, w), with the 2D encoder's prefix tokens in every slice."""
        depth, *plane = size or self.input_size
        inner = self.inner.grid(tuple(plane))
        return Grid((depth, *inner.shape), prefix=inner.prefix, slicewise=True)

    def build(self) -> SlicewiseEncoder:
        """Return the module with fresh weights."""
        return SlicewiseEncoder(self, self.inner.build())

    def published_key(self, name: str) -> str | None:
        """Return the 2D encoder's name of a tensor, one level down."""
        inner = self.inner.published_key(name)
        return None if inner is None else f"encoder.{inner}"

    @classmethod
    def spec_from_pretrained(cls, folder: str, **settings: Any) -> SlicewiseSpec:
        """Describe the 2D encoder by a folder; `encoder` needs only its name and selections."""
        inner = dict(settings.pop("encoder"))
        inner_spec = ENCODERS[inner["name"]].spec_from_pretrained(folder, **inner)
        return cls(encoder=inner_spec.to_dict(), **settings)

    @classmethod
    def from_pretrained(cls, folder: str, **settings: Any) -> tuple[EncoderSpec, EncoderModule]:
        """Start the 2D encoder from a folder."""
        inner = dict(settings["encoder"])
        spec = cls.spec_from_pretrained(folder, **settings)
        return spec, SlicewiseEncoder(spec, ENCODERS[inner["name"]].from_pretrained(folder, **inner)[1])


class SlicewiseEncoder(EncoderModule):
    """(N, C, D, H, W) -> (N, D * tokens per slice, hidden_size), slice after slice."""

    def __init__(self, spec: SlicewiseSpec, encoder: EncoderModule) -> None:
        super().__init__()
        self.encoder = encoder
        self._channels = spec.channels
        self._slices_per_pass = spec.slices_per_pass

    def forward(self, pixels: Tensor) -> Tensor:
        """Fold the slices into the batch, encode, unfold."""
        batch, channels, depth = pixels.shape[:3]
        slices = pixels.transpose(1, 2).flatten(0, 1)  # (N*D, C, H, W)
        if channels == 1:
            slices = slices.expand(-1, self._channels, -1, -1)
        if self._slices_per_pass and not torch.is_grad_enabled():
            features = torch.cat([self.encoder(part) for part in slices.split(self._slices_per_pass)])
        else:
            features = self.encoder(slices)
        return features.reshape(batch, depth * features.shape[1], features.shape[2])
