"""Converters from published data sets to records, and the function that runs them."""

from __future__ import annotations

from medmvl.data.converters.conversion import Conversion, convert
from medmvl.data.converters.converter import DATASETS, ConversionReport, Converter, Options

__all__ = ["DATASETS", "Conversion", "Converter", "ConversionReport", "Options", "convert"]
