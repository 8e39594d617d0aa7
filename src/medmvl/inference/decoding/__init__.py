"""Continuous batching: answers that are decoded together, join at any step and share the prefill of a common prefix."""

from medmvl.inference.decoding.decoder import Decoder
from medmvl.inference.decoding.row import Row, RowOptions

__all__ = ["Decoder", "Row", "RowOptions"]
