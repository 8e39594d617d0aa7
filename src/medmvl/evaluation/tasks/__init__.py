"""The benchmarks, by name. Importing this package registers all of them."""

from __future__ import annotations

from medmvl.evaluation.tasks import phantom
from medmvl.evaluation.tasks.base import BENCHMARKS, Benchmark, Column

__all__ = ["BENCHMARKS", "Benchmark", "Column", "phantom"]
