"""Connectors: a pooling followed by a projector."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor, nn

from medmvl.models.connectors.poolings import POOLINGS, PoolingSpec
from medmvl.models.connectors.projectors import build_projector, check_projector
from medmvl.models.grid import Grid


class ConnectorSpec(BaseModel):
    """Settings of a connector.

    Attributes:
        pooling: a name, or settings with a `name`.
        projector: a name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pooling: dict[str, Any] = {"name": "none"}
    projector: str = "mlp2x_gelu"

    @field_validator("pooling", mode="before")
    @classmethod
    def _known_pooling(cls, value: str | dict[str, Any]) -> dict[str, Any]:
        settings = {"name": value} if isinstance(value, str) else value
        return POOLINGS[settings["name"]].model_validate(settings).to_dict()

    @field_validator("projector")
    @classmethod
    def _known_projector(cls, value: str) -> str:
        return check_projector(value)

    @property
    def pooling_spec(self) -> PoolingSpec:
        """The spec of the pooling."""
        return POOLINGS[self.pooling["name"]].model_validate(self.pooling)

    def output_grid(self, grid: Grid) -> Grid:
        """Return the grid that leaves the connector."""
        return self.pooling_spec.output_grid(grid)

    def build(self, in_features: int, out_features: int, grid: Grid) -> Connector:
        """Return the module with fresh weights."""
        pooling = self.pooling_spec.build(in_features, grid)
        width = self.pooling_spec.output_size(in_features, grid)
        return Connector(pooling, build_projector(self.projector, width, out_features))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return self.model_dump(mode="json")


class Connector(nn.Module):
    """(N, tokens, encoder width) -> (N, fewer tokens, LLM width)."""

    def __init__(self, pooling: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling
        self.projector = projector

    def forward(self, features: Tensor) -> Tensor:
        """Pool and project: (N, tokens, encoder width) -> (N, fewer tokens, LLM width)."""
        return self.projector(self.pooling(features))


def connector_spec(settings: str | dict[str, Any]) -> ConnectorSpec:
    """Return the spec for a projector's name or for full settings."""
    return ConnectorSpec.model_validate({"projector": settings} if isinstance(settings, str) else settings)
