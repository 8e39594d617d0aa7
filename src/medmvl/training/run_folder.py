"""The run folder: what is where, what is finished, and what a finished checkpoint holds.

<out>/recipe.yaml            the resolved recipe of the run
<out>/init/                  the model as built, where the run starts from parts
<out>/<stage>/               the finished checkpoint of a stage
<out>/<stage>/checkpoints/   what the stage resumes from
<out>/model/                 the last stage's checkpoint (hard links, no second copy)
<out>/log.jsonl              a line per optimiser step
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from medmvl.errors import RecipeError
from medmvl.files import write_json, write_text
from medmvl.training.checkpoints import CHECKSUMS, link_or_copy, tidy, whole_files
from medmvl.training.recipe import Recipe
from medmvl.training.recipe_io import dump_recipe, read_yaml

#: Keys of a recipe that may change between the start and the resumption of a run: they do not change the result.
FREE_KEYS = ("run", "description")
FREE_STAGE_KEYS = (
    "micro_batch_size",
    "save_every",
    "keep",
    "stop_after_nans",
    "activation_checkpointing",
    "compile",
    "feature_cache",
    "cross_entropy",
)


@dataclass(frozen=True)
class RunFolder:
    """Paths and states of a run."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def log(self) -> Path:
        """A line per optimiser step."""
        return self.root / "log.jsonl"

    @property
    def init(self) -> Path:
        """The model as built."""
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
        """Say whether a folder holds a finished checkpoint."""
        return (folder / CHECKSUMS).is_file()

    def open(self, recipe: Recipe, resume: bool) -> None:
        """Begin the run, or check that it may be continued; one that never took a step is begun anew.

        Raises:
            RecipeError: if a run is there already and `resume` is not set, or it was started with another recipe.
        """
        if self.recipe.is_file() and not resume and self._nothing_done:
            # What such a run had built; a contrastive stage builds its start beside its checkpoints.
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
        """Whether a run in this folder ended before its first step, so that nothing of it is worth keeping."""
        return not self.log.exists() and not any(self.finished(folder) for folder in self._stages())

    def _stages(self) -> Iterator[Path]:
        return (folder for folder in self.root.iterdir() if folder.is_dir() and folder != self.init)

    def publish(self, stage: str) -> None:
        """Make `model/` the checkpoint of `stage`."""
        link_or_copy(self.stage(stage), self.model)


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the paths in which two recipes differ, but for what does not change the result."""
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
    folder: Path, write_model: Callable[[Path], object], processor: Any, recipe: Recipe, stage: str | None
) -> None:
    """Write a finished, self-contained checkpoint, see `write_checkpoint`; until all of it is there it is not finished."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_files(folder) as aside:
        write_checkpoint(aside, write_model, processor, recipe, stage)


def write_checkpoint(
    folder: Path, write_model: Callable[[Path], object], processor: Any, recipe: Recipe, stage: str | None
) -> None:
    """Write model, processor (anything with `save_pretrained`), recipe and environment into a folder.

    Args:
        write_model: writes config and weights; a model's `save_pretrained`.
    """
    write_model(folder)
    processor.save_pretrained(folder)
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    write_json(folder / "environment.json", {"stage": stage, **environment()})


def environment() -> dict[str, Any]:
    """Return the versions that a result depends on; no names of machines or people."""
    packages = ("medmvl", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "packages": {name: metadata.version(name) for name in packages},
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
