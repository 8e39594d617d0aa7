"""The benchmarks, by name. Importing this package registers all of them."""

from __future__ import annotations

from medmvl.evaluation.tasks import calibration, ct, evidence, medmnist, own, paper2d, phantom, retrieval
from medmvl.evaluation.tasks.benchmark import BENCHMARKS, GROUPS, Benchmark, Column, expand_benchmarks
from medmvl.evaluation.tasks.profiles import PROFILES, with_profile

__all__ = [
    "BENCHMARKS",
    "GROUPS",
    "Benchmark",
    "Column",
    "PROFILES",
    "expand_benchmarks",
    "calibration",
    "ct",
    "evidence",
    "medmnist",
    "own",
    "paper2d",
    "phantom",
    "retrieval",
    "with_profile",
]

GROUPS["paper-2d"] = (
    "medmnist-derma",
    "medmnist-organs",
    "medpix",
    "mimic-cxr",
    "pathvqa",
    "samed-identify",
    "samed-refer",
    "slake-identify",
    "slake-refer",
    "slake-vqa",
)
GROUPS["paper-ct"] = ("ct-rate-long", "ct-rate-short", "ct-rate-choice", "ct-rate-report")
