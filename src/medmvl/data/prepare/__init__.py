"""From published data sets to records: one converter per data set, one way to run and account for all of them."""

from __future__ import annotations

from medmvl.data.prepare.base import DATASETS, Converter, Ledger, Options
from medmvl.data.prepare.run import Conversion, convert

__all__ = ["DATASETS", "Conversion", "Converter", "Ledger", "Options", "convert"]
