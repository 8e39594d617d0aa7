"""Towers: an encoder and its connector, which turn pixels of one modality into embeddings of the LLM's width."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor, nn

from medmvl.models.connectors import Connector, ConnectorSpec
from medmvl.models.encoders import EncoderModule, EncoderSpec, encoder_spec
from medmvl.models.grid import Grid

MODALITIES = ("image", "volume")


class TowerSpec(BaseModel):
    """Settings of a tower.

    Attributes:
        encoder: settings of the encoder, with its `name`.
        connector: settings of the connector.
        size: the input size (H, W) or (D, H, W) the tower is used at; default: the encoder's native one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: dict[str, Any]
    connector: ConnectorSpec = ConnectorSpec()
    size: tuple[int, ...] | None = None

    @field_validator("encoder")
    @classmethod
    def _known_encoder(cls, value: dict[str, Any]) -> dict[str, Any]:
        return encoder_spec(value).to_dict()

    @property
    def encoder_spec(self) -> EncoderSpec:
        """The spec of the encoder."""
        return encoder_spec(self.encoder)

    @property
    def input_size(self) -> tuple[int, ...]:
        """The size inputs have."""
        return self.size or self.encoder_spec.input_size

    def output_grid(self, size: tuple[int, ...] | None = None) -> Grid:
        """Return the grid of embeddings for an input of `size`."""
        return self.connector.output_grid(self.encoder_spec.grid(size or self.input_size))

    def build(self, hidden_size: int) -> Tower:
        """Return the module with fresh weights; `hidden_size` is the LLM's width."""
        encoder = self.encoder_spec
        connector = self.connector.build(encoder.hidden_size, hidden_size, encoder.grid(self.input_size))
        grid = encoder.grid(self.input_size)
        return Tower(encoder.build(), connector, (grid.tokens, self.connector.output_grid(grid).tokens))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return self.model_dump(mode="json", exclude_none=True)


def count_visual_tokens(tower: TowerSpec, size: tuple[int, ...] | None = None) -> int:
    """Return how many LLM positions one input takes.

    The processor expands each placeholder to this number; the model compares it with the embeddings that arrive.

    Args:
        tower: of the input's modality.
        size: (H, W) or (D, H, W); default: the tower's own.
    """
    return tower.output_grid(size).tokens


class Tower(nn.Module):
    """(N, C, [D,] H, W) -> (N, tokens, LLM width).

    Args:
        tokens: number of tokens before and after the pooling, for an input of the tower's own size.
    """

    def __init__(self, encoder: EncoderModule, connector: Connector, tokens: tuple[int, int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.connector = connector
        self._tokens, self._pooled_tokens = tokens

    def encode(self, pixels: Tensor) -> Tensor:
        """Run the encoder: (N, C, [D,] H, W) -> (N, tokens, encoder width).

        If none of its weights trains, it runs without autograd and dropout and keeps its running statistics.
        """
        trains = any(parameter.requires_grad for parameter in self.encoder.parameters())
        if not trains:
            self.encoder.eval()
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            dtype = next(self.encoder.parameters()).dtype
            return self.encoder(pixels.to(dtype))

    @property
    def pools_without_weights(self) -> bool:
        """Whether the pooling makes fewer tokens and has no weights, so that its output can be stored for the encoder's."""
        return self._pooled_tokens < self._tokens and not self.connector.pooling.state_dict()

    @property
    def stored_tokens(self) -> int:
        """Number of tokens that `encode_pooled` returns for an input of the tower's own size."""
        return self._pooled_tokens if self.pools_without_weights else self._tokens

    def encode_pooled(self, pixels: Tensor) -> Tensor:
        """Run the encoder and, if it has no weights, the pooling: (N, C, [D,] H, W) -> (N, stored tokens, encoder width)."""
        features = self.encode(pixels)
        return self.connector.pooling(self._for_connector(features)) if self.pools_without_weights else features

    def forward(self, pixels: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Encode and connect; returns (N, tokens, LLM width).

        Args:
            pixels: (N, C, [D,] H, W).
            features: stored features (N, tokens, encoder width), which replace the encoder's run. If they have the pooled
                number of tokens, they replace that of a pooling without weights as well (`encode_pooled`).
        """
        if features is None:
            assert pixels is not None
            features = self.encode(pixels)
        elif self.pools_without_weights and features.shape[1] == self._pooled_tokens:
            return self.connector.projector(self._for_connector(features))
        return self.connector(self._for_connector(features))

    def _for_connector(self, features: Tensor) -> Tensor:
        return features.to(next(self.connector.parameters()).dtype)
