"""The files of a finished checkpoint."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from medmvl.cards import write_card
from medmvl.cards.training_data import collect_training_data, write_training_data
from medmvl.files import read_json, write_json, write_text
from medmvl.models import MedMVLConfig
from medmvl.training.engine.checkpoints import whole_files
from medmvl.training.recipe import Recipe
from medmvl.training.recipe_io import dump_recipe


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from.

    Attributes:
        recipe: of the run.
        stage: that ended with it; None for the model before training.
        steps: stage -> optimizer steps that it took, as far as they are known.
    """

    recipe: Recipe
    stage: str | None = None
    steps: Mapping[str, int] = field(default_factory=dict)


def save_finished(folder: Path, write_model: Callable[[Path], object], processor: Any, origin: Origin) -> None:
    """Write a finished, self-contained checkpoint, see `write_checkpoint`; until all files are written it counts as unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_files(folder) as aside:
        write_checkpoint(aside, write_model, processor, origin)


def write_checkpoint(folder: Path, write_model: Callable[[Path], object], processor: Any, origin: Origin) -> None:
    """Write model, processor (anything with `save_pretrained`), recipe, environment, training data and a model card into a folder.

    A dual encoder has no card, a model before training neither card nor training data.

    Args:
        write_model: writes config and weights; a model's `save_pretrained`. If it returns the differences that it measured
            (name -> number), they are written as well.
    """
    differences = write_model(folder)
    processor.save_pretrained(folder)
    write_text(folder / "recipe.yaml", dump_recipe(origin.recipe))
    measured: dict[str, Any] = {"differences": differences} if isinstance(differences, dict) else {}
    measured |= {"steps": dict(origin.steps)} if origin.steps else {}
    write_json(folder / "environment.json", {"stage": origin.stage, **environment(), **measured})
    if origin.stage is None:
        return
    write_training_data(folder, collect_training_data(origin.recipe.to_dict(), origin.stage))
    if read_json(folder / "config.json").get("model_type") == MedMVLConfig.model_type:
        write_card(folder)


def environment() -> dict[str, Any]:
    """Return the versions that a result depends on, without names of machines or people."""
    packages = ("medmvl", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "packages": {name: metadata.version(name) for name in packages},
    }
