"""The run folder: its layout, its finished stages, and the files of a finished checkpoint.

<out>/recipe.yaml            the resolved recipe of the run
<out>/init/                  the model before training, if it is built from parts
<out>/<stage>/               the finished checkpoint of a stage
<out>/<stage>/checkpoints/   checkpoints to resume the stage from
<out>/model/                 the last stage's checkpoint (hard links, no second copy)
<out>/log.jsonl              a line per optimizer step
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from medmvl.cards import write_card
from medmvl.cards.training_data import collect_training_data, write_training_data
from medmvl.errors import RecipeError
from medmvl.files import iter_jsonl, read_json, write_json, write_text
from medmvl.models import MedMVLConfig
from medmvl.training.engine.checkpoints import CHECKSUMS, link_or_copy, tidy, whole_files
from medmvl.training.recipe import Recipe
from medmvl.training.recipe_io import dump_recipe, read_yaml

#: Keys of a recipe that may change when a run is resumed, because they do not change the result.
FREE_KEYS = ("run", "description")
FREE_STAGE_KEYS = (
    "micro_batch_size",
    "save_every",
    "save_minutes",
    "keep",
    "stop_after_nans",
    "activation_checkpointing",
    "compile",
    "feature_cache",
    "cross_entropy",
)


@dataclass(frozen=True)
class RunFolder:
    """Paths and state of a run."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def log(self) -> Path:
        """The log, with a line per optimizer step."""
        return self.root / "log.jsonl"

    @property
    def init(self) -> Path:
        """The model before training."""
        return self.root / "init"

    @property
    def model(self) -> Path:
        """The last stage's checkpoint."""
        return self.root / "model"

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.root / name

    def checkpoints(self, name: str) -> Path:
        """The folder of a stage's intermediate checkpoints."""
        return self.stage(name) / "checkpoints"

    @staticmethod
    def finished(folder: Path) -> bool:
        """Whether a folder holds a finished checkpoint."""
        return (folder / CHECKSUMS).is_file()

    def open(self, recipe: Recipe, resume: bool) -> None:
        """Start the run, or check that it may be continued; a run that never took a step starts again.

        Raises:
            RecipeError: if a run exists and `resume` is not set, or it was started with another recipe.
        """
        if self.recipe.is_file() and not resume and self._nothing_done:
            # Files that such a run had written; a contrastive stage writes its start next to its checkpoints.
            for built in (self.init, *(folder / "checkpoints" for folder in self._stages())):
                shutil.rmtree(built, ignore_errors=True)
        elif self.recipe.is_file():
            if not resume:
                raise RecipeError(
                    f"{self.root} holds a run already. Continue it with --resume, or choose another folder with --out."
                )
            changed = changed_keys(read_yaml(self.recipe), recipe.to_dict())
            if changed:
                raise RecipeError(
                    f"The run in {self.root} was started with another recipe; it differs in {', '.join(changed)}. "
                    "Resume with the same settings, or start a new run with --out."
                )
        write_text(self.recipe, dump_recipe(recipe))
        tidy(self.root)
        for stage in recipe.stages:
            tidy(self.checkpoints(stage.name))
            tidy(self.stage(stage.name))

    @property
    def _nothing_done(self) -> bool:
        """Whether the run in this folder ended before its first step."""
        return not self.log.exists() and not any(self.finished(folder) for folder in self._stages())

    def _stages(self) -> Iterator[Path]:
        return (folder for folder in self.root.iterdir() if folder.is_dir() and folder != self.init)

    def published(self, stage: str) -> bool:
        """Whether `model/` is a copy of the finished checkpoint of `stage`."""
        ours, shown = (folder / CHECKSUMS for folder in (self.stage(stage), self.model))
        return shown.is_file() and shown.read_bytes() == ours.read_bytes()

    def publish(self, stage: str) -> None:
        """Make `model/` a copy (hard links) of the checkpoint of `stage`."""
        link_or_copy(self.stage(stage), self.model)


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the paths of settings that differ between two recipes and change the result."""
    return _differences(_essential(old), _essential(new))


def _essential(recipe: dict[str, Any]) -> dict[str, Any]:
    essential = {key: value for key, value in recipe.items() if key not in FREE_KEYS}
    essential["stages"] = {
        stage["name"]: {key: value for key, value in stage.items() if key not in FREE_STAGE_KEYS}
        for stage in recipe.get("stages", [])
    }
    return essential


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [
            found
            for key in keys
            for found in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [path]


def save_finished(
    folder: Path,
    write_model: Callable[[Path], object],
    processor: Any,
    recipe: Recipe,
    stage: str | None,
    steps: Mapping[str, int] | None = None,
) -> None:
    """Write a finished, self-contained checkpoint, see `write_checkpoint`; until all files are written it counts as unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_files(folder) as aside:
        write_checkpoint(aside, write_model, processor, recipe, stage, steps)


def write_checkpoint(
    folder: Path,
    write_model: Callable[[Path], object],
    processor: Any,
    recipe: Recipe,
    stage: str | None,
    steps: Mapping[str, int] | None = None,
) -> None:
    """Write model, processor (anything with `save_pretrained`), recipe, environment, training data and a model card into a folder.

    A dual encoder has no card, a model before training neither card nor training data.

    Args:
        write_model: writes config and weights; a model's `save_pretrained`. If it returns the differences that it measured
            (name -> number), they are written as well.
        steps: stage -> optimizer steps that it took, as far as they are known.
    """
    differences = write_model(folder)
    processor.save_pretrained(folder)
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    measured: dict[str, Any] = {"differences": differences} if isinstance(differences, dict) else {}
    measured |= {"steps": dict(steps)} if steps else {}
    write_json(folder / "environment.json", {"stage": stage, **environment(), **measured})
    if stage is None:
        return
    write_training_data(folder, collect_training_data(recipe.to_dict(), stage))
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


def steps_done(log: Path) -> dict[str, int]:
    """Return stage -> number of its last step in a run's log; empty without a log."""
    return {row["stage"]: row["step"] for row in (iter_jsonl(log) if log.is_file() else ())}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log."""
    return list(iter_jsonl(path))
