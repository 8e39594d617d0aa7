"""Training of the quickstart: both encoders in parallel, each with its own small LLM, then the model."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from medmvl.experiments.quickstart.place import Quickstart, line_count
from medmvl.experiments.quickstart.processes import in_parallel
from medmvl.progress_bar import is_shown, progress_bar
from medmvl.training.recipe import Recipe
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import train

MODALITIES = ("image", "volume")

#: The folder of an LLM that was pretrained on texts about synthetic patients and has seen no picture; its README says how it was made.
PRETRAINED_LLM = Path(str(resources.files("medmvl.experiments") / "phantom_llm"))


def encoder_recipe(place: Quickstart, modality: str, seed: int, scale: float = 1.0) -> Recipe:
    """Return the recipe that pretrains the encoder of "image" or "volume" by captioning."""
    settings = _settings(f"{modality}-encoder", place, seed, scale)
    # A bar counts the steps of both encoders; without a terminal each writes its lines.
    settings["run"]["progress"] = not is_shown()
    return load_recipe(settings)


def recipe(place: Quickstart, seed: int, scale: float = 1.0) -> Recipe:
    """Return the quickstart's recipe for this folder and seed."""
    settings = _settings("recipe", place, seed, scale)
    settings["model"]["llm"]["init_from"] = str(place.llm)
    for modality in MODALITIES:
        settings["model"][modality]["encoder"]["init_from"] = str(place.encoder(modality) / "model")
    return load_recipe(settings)


def _settings(name: str, place: Quickstart, seed: int, scale: float) -> dict[str, Any]:
    text = resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    settings: dict[str, Any] = yaml.safe_load(text)
    settings |= {"seed": seed, "data_root": str(place.data)}
    settings["run"]["volume_cache"] = str(place.prepared)
    for stage in settings["stages"]:
        stage["epochs"] = stage["epochs"] * scale
    return settings


def pretrain_encoders(place: Quickstart, seed: int, scale: float = 1.0) -> None:
    """Train both encoders at the same time; finished ones are kept, unfinished ones continue."""
    recipes = [encoder_recipe(place, modality, seed, scale) for modality in MODALITIES]
    folders = [place.encoder(modality) for modality in MODALITIES]
    with progress_bar("steps of the encoders", sum(map(_steps, recipes))) as bar:
        in_parallel(
            [(_train, *job) for job in zip(recipes, folders, strict=True)],
            lambda: bar.update(sum(map(_steps_done, folders))),
        )


def _train(recipe: Recipe, folder: Path) -> None:
    train(recipe, folder, resume=True)


def _steps(recipe: Recipe) -> int:
    """Return the steps of a recipe's only stage, whose data are one file."""
    (stage,), ((name, _),) = recipe.stages, recipe.data.items()
    assert stage.epochs is not None
    return math.ceil(stage.epochs * line_count(Path(recipe.path(recipe.data[name].path))) / stage.batch_size)


def _steps_done(folder: Path) -> int:
    return line_count(folder / "log.jsonl")
