"""The benchmarks, by name. Importing this package registers all of them."""

from __future__ import annotations

from medmvl.evaluation.tasks import phantom
from medmvl.evaluation.tasks.base import BENCHMARKS, GROUPS, Benchmark, Column, expand_benchmarks

__all__ = ["BENCHMARKS", "GROUPS", "Benchmark", "Column", "expand_benchmarks", "phantom"]
