"""Evaluation: predictions in, numbers with intervals out, beside controls that tell what the image was worth."""

from __future__ import annotations

from medmvl.evaluation.metrics import METRICS
from medmvl.evaluation.model import evaluate_model
from medmvl.evaluation.results import merge_results
from medmvl.evaluation.run import evaluate_predictions
from medmvl.evaluation.side_by_side import compare_predictions
from medmvl.evaluation.tasks import BENCHMARKS, Benchmark, expand_benchmarks

__all__ = [
    "BENCHMARKS",
    "METRICS",
    "Benchmark",
    "compare_predictions",
    "evaluate_model",
    "evaluate_predictions",
    "expand_benchmarks",
    "merge_results",
]
