"""Connectors: a pooling (grid to smaller grid) and a projector (encoder width to LLM width)."""

from medmvl.models.connectors import perceiver, pixel_shuffle  # noqa: F401  (imported to register)
from medmvl.models.connectors.connector import Connector, ConnectorSpec, connector_spec
from medmvl.models.connectors.poolings import POOLINGS, PoolingSpec
from medmvl.models.connectors.projectors import PROJECTORS

__all__ = ["POOLINGS", "PROJECTORS", "Connector", "ConnectorSpec", "PoolingSpec", "connector_spec"]
