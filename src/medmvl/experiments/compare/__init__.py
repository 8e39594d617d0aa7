"""The comparison runner: a grid of recipes, trained, evaluated and tabulated. `medmvl compare MATRIX.yaml`."""

from __future__ import annotations

from medmvl.experiments.compare.comparison import compare
from medmvl.experiments.compare.matrix import Matrix, Run, expand, load_matrix

__all__ = ["Matrix", "Run", "compare", "expand", "load_matrix"]
