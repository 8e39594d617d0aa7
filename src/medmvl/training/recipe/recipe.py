"""A recipe: a model, data, and stages."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from medmvl.remote import RemotePath, as_root, is_url, join
from medmvl.training.recipe.base import Count, FolderName, Section
from medmvl.training.recipe.data import DataSection, PhantomSection
from medmvl.training.recipe.model import ModelSection
from medmvl.training.recipe.stages import STAGES, StageSection, objective_of


class RunSection(Section):
    """How the run uses the machine; these settings do not change the result."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Data loader processes per device; 0 loads in the training process."""
    prefetch: Count = 4
    """Micro-batches that each worker prepares in advance."""
    volume_cache: str | None = None
    """Folder written by `medmvl data cache`, or folder or URL of its shards; its volumes are not prepared again."""
    feature_shards: str | None = None
    """Folder or URL written by `medmvl data pack`; with `feature_cache` its features are not computed again."""
    cache_megabytes: Annotated[int, Field(ge=0)] = 0
    """Memory for encoded samples per loader process; for small data sets that are seen often."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto uses the accelerator if there is one."""
    strategy: Literal["ddp", "fsdp", "zero2", "zero3"] = "ddp"
    """Several processes (torchrun): ddp averages gradients; fsdp shards weights, gradients and optimizer state (FSDP2); zero2
    shards gradients and optimizer state, zero3 weights as well (DeepSpeed, extra `deepspeed`)."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    """Experiment trackers that get loss, learning rate, gradient norm and tokens per second: `tensorboard` (files in
    `<stage>/tensorboard`), `wandb`, `mlflow`; each needs the extra of its name."""
    progress: bool = True
    """Show a progress bar; without a terminal, a line a minute."""


class _StagesByObjective:
    """Marks a stage's type, so that it is checked by the section of its objective."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(section) for name, section in STAGES.items()}
        return core_schema.tagged_union_schema(choices, discriminator=objective_of)


class Recipe(Section):
    """A model, data, and stages."""

    name: FolderName
    """Name of the recipe; default run folder: `runs/<name>`."""
    description: str = ""
    """One sentence about its purpose."""
    seed: int = 42
    """Seed of random weights, order of the data, and dropout."""
    plugins: list[str] = []
    """Python modules to import first; they register encoders, connectors, templates or objectives of your own."""
    data_root: str = "."
    """Folder of the data paths, relative to the current folder, or its URL (s3://, gs://, https://)."""
    phantoms: PhantomSection | None = None
    """Draw phantoms on first use."""
    model: ModelSection
    """The model to train."""
    data: Annotated[dict[FolderName, DataSection], Field(min_length=1)]
    """Name -> data set."""
    stages: Annotated[list[Annotated[StageSection, _StagesByObjective()]], Field(min_length=1)]
    """The stages, in order."""
    run: RunSection = RunSection()
    """Use of the machine."""

    @model_validator(mode="after")
    def _names_fit(self) -> Recipe:
        earlier: list[str] = []
        for index, stage in enumerate(self.stages):
            at = f"stages[{index}] ({stage.name})"
            if stage.name in earlier:
                raise ValueError(f"{at}: two stages have this name")
            if self.model.encoder_only and stage.needs_llm:
                raise ValueError(f"{at}: it needs a language model; give `model.llm`, or `objective: contrastive`")
            self._check_data(at, stage)
            if stage.can_be_sharded:
                self._check_strategy(at, stage)
            known = self.model.part_names()
            strange = [part for part in stage.train if known and part not in known]
            if strange:
                raise ValueError(f"{at}: the model has no part {strange[0]!r}; it has {', '.join(known)}")
            augmented = stage.augment.settings() if stage.augment is not None else {}
            without = [modality for modality in augmented if known and f"{modality}_encoder" not in known]
            if without:
                raise ValueError(f"{at}: `augment` names {without[0]}s and the model has no {without[0]} tower")
            source = stage.from_
            later = [other.name for other in self.stages[index:]]
            if source is not None and source in later:
                raise ValueError(f"{at}: `from` names {source!r}, which does not come before it")
            earlier.append(stage.name)
        return self

    def _check_strategy(self, at: str, stage: StageSection) -> None:
        """Reject combinations that a strategy does not support or that are untested."""
        strategy = self.run.strategy
        only_whole = {
            "lora.quantize": any(part.mode == "lora" and part.lora.quantize for part in stage.train.values()),
            "precision: fp16": stage.precision == "fp16",
            "optimizer: muon": stage.optimizer == "muon",
        }
        for setting, wanted in only_whole.items():
            if wanted and strategy != "ddp":
                raise ValueError(f"{at}: {setting} does not go with run.strategy {strategy}; use ddp")
        if stage.optimizer == "adamw_8bit" and strategy in ("zero2", "zero3"):
            raise ValueError(f"{at}: optimizer: adamw_8bit does not go with run.strategy {strategy}; use ddp or fsdp")
        if stage.compile and strategy == "zero3":
            raise ValueError(f"{at}: `compile` does not go with run.strategy zero3; use fsdp")

    def _check_data(self, at: str, stage: StageSection) -> None:
        names = [*(stage.data or []), *(stage.evaluate.data if stage.evaluate else [])]
        for name in names:
            if name not in self.data:
                raise ValueError(f"{at}: there is no data set {name!r} in `data`; there is {', '.join(self.data)}")
        both = set(stage.data or []) & set(stage.evaluate.data if stage.evaluate else [])
        if both:
            raise ValueError(f"{at}: {sorted(both)[0]!r} is both trained on and evaluated on")

    def stage(self, name: str) -> StageSection:
        """Return the stage called `name`."""
        return next(stage for stage in self.stages if stage.name == name)

    def mixture(self, stage: StageSection) -> dict[str, float]:
        """Return name -> weight of the data sets that `stage` trains on."""
        if isinstance(stage.data, dict):
            return dict(stage.data)
        held_out = set(stage.evaluate.data) if stage.evaluate else set()
        names = stage.data if stage.data is not None else [name for name in self.data if name not in held_out]
        return {name: self.data[name].weight for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `Recipe.model_validate` accepts; settings with their default value are omitted."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def path(self, relative: str) -> PurePath | RemotePath:
        """Return a data path below `data_root`; a URL stays one, and `data_root` may be one."""
        root = as_root(relative if is_url(relative) else self.data_root)
        if is_url(relative):
            return root
        return join(root, relative) if isinstance(root, RemotePath) else PurePath(self.data_root) / relative


def register_stage(section: type[StageSection]) -> None:
    """Let recipes have stages of another objective.

    Args:
        section: its field `objective` is a Literal with the name of the objective.
    """
    name = section.objective_name()
    if STAGES.get(name) is section:
        return
    if name in STAGES:
        raise ValueError(f"The objective {name!r} is registered twice.")
    STAGES[name] = section
    Recipe.model_rebuild(force=True)
