"""Checkpoints of others in, deployable formats out, adapters merged, folders inspected."""

from medmvl.checkpoints.convert import Conversion, convert
from medmvl.checkpoints.resolve import parse_resolutions

__all__ = ["Conversion", "convert", "parse_resolutions"]
