"""The run folder: its layout and its finished stages.

<out>/recipe.yaml            the resolved recipe of the run
<out>/init/                  the model before training, if it is built from parts
<out>/<stage>/               the finished checkpoint of a stage
<out>/<stage>/checkpoints/   checkpoints to resume the stage from
<out>/model/                 the last stage's checkpoint (hard links, no second copy)
<out>/log.jsonl              a line per optimizer step
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmvl.errors import RecipeError
from medmvl.files import iter_jsonl, write_text
from medmvl.training.engine.checkpoints import CHECKSUMS, link_or_copy, tidy
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


def steps_done(log: Path) -> dict[str, int]:
    """Return stage -> number of its last step in a run's log; empty without a log."""
    return {row["stage"]: row["step"] for row in (iter_jsonl(log) if log.is_file() else ())}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log."""
    return list(iter_jsonl(path))
