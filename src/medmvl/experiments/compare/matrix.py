"""The matrix of a comparison: axes with named choices, spelled in YAML, expanded into recipes."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from medmvl.errors import RecipeError, did_you_mean, listed, naming, shown
from medmvl.evaluation import BENCHMARKS, expand_benchmarks
from medmvl.files import PathLike
from medmvl.training.recipe import FolderName, Recipe, Section
from medmvl.training.recipe_io import apply_overrides, parse_recipe, read_yaml
from medmvl.training.run_folder import FREE_STAGE_KEYS
from medmvl.training.shipped import recipes_folder
from medmvl.validation import allowed_and_given

Settings = dict[str, Any]
"""key.path -> value, as `medmvl train --set` takes them."""


class EvaluateSettings(Section):
    """Settings of the evaluation of every run."""

    benchmarks: Annotated[list[str], Field(min_length=1)]
    """Benchmarks or groups of them (`paper-ct`)."""
    data_root: str
    """Folder of the benchmark's records, or the file itself, relative to the current folder."""
    image_root: str | None = None
    """Folder of the images; default: as the conversion noted."""
    volume_root: str | None = None
    """Folder of the volumes; default: as the conversion noted."""
    controls: list[str] = ["blank", "shuffled"]
    """Controls that every run is also asked under."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest answer."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Records answered at once."""


class Matrix(Section):
    """A grid of recipes that differ in a few settings."""

    name: FolderName
    """Name of the comparison."""
    description: str = ""
    """The question it answers."""
    recipe: str | dict[str, Any]
    """The recipe that all runs share: a file (relative to the matrix, or one that ships), or its text."""
    set: Settings = {}
    """Settings changed in all runs."""
    axes: Annotated[dict[FolderName, dict[FolderName, Settings]], Field(min_length=1)]
    """Axis -> choice -> the settings it changes; the grid is the product of the axes."""
    exclude: list[dict[str, str]] = []
    """Combinations (axis -> choice) that are left out."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    """Every combination is trained once per seed."""
    reference: str | None = None
    """The variant that the others are tested against first; default: the first."""
    evaluate: EvaluateSettings
    """How every run is scored."""


@dataclass(frozen=True)
class Run:
    """One training: a variant and a seed.

    Attributes:
        variant: names of the choices, joined by "+".
        seed: of the recipe.
        recipe: resolved.
    """

    variant: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.variant.replace('+', '_')}-seed{self.seed}"

    def stage_key(self, index: int) -> str:
        """Return a fingerprint of all that the result of a stage depends on; equal keys need one training.

        That is the model, the data, the seed, and the stages up to this one. Settings that do not change a result
        (micro-batches, checkpoints, the machine) are left out.
        """
        values = self.recipe.to_dict()
        shared = {key: values.get(key) for key in ("model", "data", "data_root", "phantoms", "plugins", "seed")}
        stages = [
            {k: v for k, v in stage.items() if k not in FREE_STAGE_KEYS} for stage in values["stages"][: index + 1]
        ]
        text = json.dumps([shared, stages], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_matrix(path: PathLike) -> Matrix:
    """Read and check a matrix file.

    Raises:
        RecipeError: naming every fault with its place.
    """
    file = Path(path)
    values = read_yaml(file)
    try:
        matrix = Matrix.model_validate(values)
    except ValidationError as error:
        faults = [_words(detail) for detail in error.errors()]
        raise RecipeError(listed(f"{file} is not a valid matrix:", faults)) from error
    with naming(file):
        names = expand_benchmarks(matrix.evaluate.benchmarks)
    assert all(name in BENCHMARKS for name in names)
    for entry in matrix.exclude:
        for axis, choice in entry.items():
            known = matrix.axes.get(axis)
            if known is None:
                raise RecipeError(f"{file}, exclude: there is no axis {shown(axis)}. {did_you_mean(axis, matrix.axes)}")
            if choice not in known:
                raise RecipeError(
                    f"{file}, exclude: {axis} has no choice {shown(choice)}. {did_you_mean(choice, known)}"
                )
    return matrix


def _words(detail: ErrorDetails) -> str:
    location = detail["loc"]
    path = ".".join(str(step) for step in location if not str(step).endswith("]")) or "top level"
    if detail["type"] == "extra_forbidden":
        section = EvaluateSettings if location[0] == "evaluate" else Matrix
        return f"{path}: unknown key. {did_you_mean(str(location[-1]), section.model_fields)}"
    return f"{path}: {allowed_and_given(detail)}."


def expand(matrix: Matrix, folder: Path) -> list[Run]:
    """Return the runs of a matrix: variants in the order of the axes, each with every seed.

    Args:
        matrix: the grid.
        folder: of the matrix file; its recipe's path is relative to it.

    Raises:
        RecipeError: if a variant is not a valid recipe (naming it), or nothing is left of the grid.
    """
    base = matrix.recipe if isinstance(matrix.recipe, dict) else read_yaml(_recipe_file(matrix.recipe, folder))
    runs = []
    for choices in itertools.product(*(axis.items() for axis in matrix.axes.values())):
        named = dict(zip(matrix.axes, (name for name, _ in choices), strict=True))
        if any(all(named[axis] == choice for axis, choice in entry.items()) for entry in matrix.exclude):
            continue
        variant = "+".join(named.values())
        settings = {key: value for _, choice in choices for key, value in choice.items()}
        runs += [Run(variant, seed, _recipe(matrix, base, variant, settings, seed)) for seed in matrix.seeds]
    if not runs:
        raise RecipeError(f"The matrix {matrix.name!r} excludes every combination of its axes.")
    variants = list(dict.fromkeys(run.variant for run in runs))
    if matrix.reference is not None and matrix.reference not in variants:
        raise RecipeError(
            f"reference: there is no variant {matrix.reference!r}. {did_you_mean(matrix.reference, variants)}"
        )
    return runs


def _recipe(matrix: Matrix, base: dict[str, Any], variant: str, settings: Settings, seed: int) -> Recipe:
    name = f"{matrix.name}-{variant.replace('+', '_')}-seed{seed}"
    overrides = {**matrix.set, **settings, "seed": seed, "name": name}
    # JSON is YAML, so a value of any depth travels through the one path that `--set` also takes.
    texts = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return parse_recipe(apply_overrides(base, texts), f"The variant {variant!r} of {matrix.name}")


def _recipe_file(name: str, folder: Path) -> Path:
    for candidate in (folder / name, recipes_folder() / name):
        if candidate.is_file():
            return candidate
    raise RecipeError(f"recipe: {name!r} is neither beside the matrix nor among the shipped recipes.")
