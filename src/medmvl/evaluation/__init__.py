"""Scores of predictions with confidence intervals, and controls that show how much a model uses the image."""

from __future__ import annotations

from medmvl.evaluation.evaluate_model import evaluate_model
from medmvl.evaluation.evaluate_predictions import evaluate_predictions
from medmvl.evaluation.metrics import METRICS
from medmvl.evaluation.options import EvaluationOptions
from medmvl.evaluation.results import merge_results
from medmvl.evaluation.side_by_side import compare_predictions
from medmvl.evaluation.tasks import BENCHMARKS, Benchmark, expand_benchmarks

__all__ = [
    "BENCHMARKS",
    "METRICS",
    "Benchmark",
    "EvaluationOptions",
    "compare_predictions",
    "evaluate_model",
    "evaluate_predictions",
    "expand_benchmarks",
    "merge_results",
]
