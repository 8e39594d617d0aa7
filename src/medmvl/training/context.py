"""A stage in its run: where it starts, which data it sees, where its checkpoint goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from medmvl.cards.training_data import collect_training_data
from medmvl.data.dataset import SampleDataset
from medmvl.data.mixture import Mixture
from medmvl.data.read_options import ReadOptions
from medmvl.data.roots import MediaRoots
from medmvl.data.sample import Sample
from medmvl.errors import RecipeError
from medmvl.processing.stored_prompts import StoredPrompts, collect_prompts, read_prompts
from medmvl.remote import is_url
from medmvl.training.acceleration.deepspeed import LEVELS
from medmvl.training.build import build
from medmvl.training.engine.checkpoints import sealed_directory
from medmvl.training.engine.distributed import barrier, is_main_process, several_processes
from medmvl.training.finished_checkpoint import Origin, save_finished, write_checkpoint
from medmvl.training.recipe import LanguageStage, Recipe, StageSection
from medmvl.training.run_folder import RunFolder, steps_done

#: Records of a data set, evenly spread, in which frequent questions are looked for.
_RECORDS_FOR_PROMPTS = 3000


@dataclass(frozen=True)
class StageContext:
    """A stage of a recipe and the folder of its run.

    Attributes:
        recipe: the recipe.
        stage: one of its stages.
        folder: the run folder.
    """

    recipe: Recipe
    stage: StageSection
    folder: RunFolder

    @property
    def seed(self) -> int:
        """Seed of this stage; it differs between stages, so that they do not see the data in the same order."""
        return self.recipe.seed + 1000 * [section.name for section in self.recipe.stages].index(self.stage.name)

    @property
    def source(self) -> Path:
        """The checkpoint folder that the stage starts from; it may not be written yet."""
        names = [section.name for section in self.recipe.stages]
        index = names.index(self.stage.name)
        if self.stage.from_ is not None:
            return self.folder.stage(self.stage.from_) if self.stage.from_ in names else Path(self.stage.from_)
        if index > 0:
            return self.folder.stage(names[index - 1])
        return Path(self.recipe.model.from_) if self.recipe.model.from_ is not None else self.folder.init

    @property
    def strategy(self) -> str:
        """How the model is spread over processes: `run.strategy`, or "ddp" for stages that cannot be sharded."""
        return self.recipe.run.strategy if self.stage.can_be_sharded and several_processes() else "ddp"

    @property
    def is_sharded(self) -> bool:
        """Whether weights or optimizer state are sharded."""
        return self.strategy != "ddp"

    @property
    def zero_level(self) -> int | None:
        """DeepSpeed's "stage", 2 or 3; None without DeepSpeed."""
        return LEVELS.get(self.strategy)

    @property
    def target(self) -> Path:
        """The folder of the finished stage."""
        return self.folder.stage(self.stage.name)

    @property
    def source_name(self) -> str:
        """The checkpoint that the stage starts from, named from the run folder if it is in it."""
        return self.source.name if self.source.parent == self.folder.root else str(self.source)

    def ready_source(self) -> Path:
        """Return the checkpoint folder that the stage starts from; build the model first if that has not been done.

        Raises:
            RecipeError: if the stage starts from an earlier one that is not finished.
        """
        source = self.source
        if source == self.folder.init and not self.folder.finished(source):
            set_seed(self.recipe.seed)
            if is_main_process():
                model, processor = build(self.recipe)
                save_finished(source, model.save_pretrained, processor, Origin(self.recipe))
            barrier()
        if not self.folder.finished(source) and source.parent == self.folder.root:
            raise RecipeError(
                f"Stage {self.stage.name!r} starts from {source.name!r}, which is not finished. Run that first."
            )
        return source

    def save(self, write_model: Callable[[Path], object], processor: Any) -> None:
        """Write the finished stage, see `medmvl.training.finished_checkpoint.save_finished`."""
        save_finished(self.target, self._with_prompts(write_model), processor, self._origin())

    def save_part(self, name: str, write_model: Callable[[Path], object], processor: Any) -> None:
        """Write another model as a sealed folder inside that of the finished stage."""
        with sealed_directory(self.target / name) as folder:
            write_checkpoint(folder, self._with_prompts(write_model), processor, self._origin())

    def _origin(self) -> Origin:
        return Origin(self.recipe, self.stage.name, steps_done(self.folder.log))

    def _with_prompts(self, write_model: Callable[[Path], object]) -> Callable[[Path], object]:
        """Return a function that also writes the questions of the training data, for a stage that learns from questions."""

        def write(folder: Path) -> object:
            result = write_model(folder)
            self.prompts().save(folder)
            return result

        return write if isinstance(self.stage, LanguageStage) else write_model

    def prompts(self) -> StoredPrompts:
        """Return the frequent questions of this stage's data; if it has none, those that its source stores.

        They count as synthetic if any data of this stage or of those that it builds on are, or any that a base was trained on.
        """
        synthetic = collect_training_data(self.recipe.to_dict(), self.stage.name).synthetic
        data = ((name, _some(self._dataset(name))) for name in self.recipe.mixture(self.stage))
        return collect_prompts(data, synthetic=synthetic).or_of(read_prompts(self.source))

    # --- data -----------------------------------------------------------------------------------------------------

    def mixture(self) -> Mixture:
        """Return the stage's data."""
        return Mixture(self.training_data(), self.recipe.mixture(self.stage), self.stage.temperature, self.seed)

    def training_data(self) -> dict[str, SampleDataset]:
        """Return name -> data set on which the stage trains."""
        return {name: self._dataset(name) for name in self.recipe.mixture(self.stage)}

    def held_out(self) -> dict[str, SampleDataset]:
        """Return name -> data set on which the stage is evaluated."""
        names = self.stage.evaluate.data if self.stage.evaluate is not None else []
        return {name: self._dataset(name) for name in names}

    def evaluated(self, dataset: SampleDataset) -> int:
        """Return how many of the first records of a held-out data set the stage is evaluated on."""
        evaluate = self.stage.evaluate
        return 0 if evaluate is None else min(len(dataset), max(evaluate.samples, evaluate.generate))

    def trained_on(self) -> dict[str, SampleDataset]:
        """Return name -> data set of this stage, and of the recipe's stages that it builds on."""
        stages = {section.name: section for section in self.recipe.stages}
        names, section = list(stages), self.stage
        chain = [section]
        while (before := section.from_ or (names[i - 1] if (i := names.index(section.name)) else None)) in stages:
            section = stages[str(before)]
            chain.append(section)
        found = dict.fromkeys(name for link in reversed(chain) for name in self.recipe.mixture(link))
        return {name: self._dataset(name) for name in found}

    def _dataset(self, name: str) -> SampleDataset:
        section = self.recipe.data[name]
        image, volume = (
            self.recipe.path(root) if root is not None else None for root in (section.image_root, section.volume_root)
        )
        roots = MediaRoots(image, volume, ReadOptions.parse(section.read))
        return SampleDataset(self.recipe.path(section.path), roots, tasks=section.tasks, name=name)

    def use_volume_cache(self, processor: Any) -> None:
        """Let a processor read prepared volumes from the recipe's cache, if it names one.

        Raises:
            GeometryError: if the cache was made with another geometry.
        """
        cache = self.recipe.run.volume_cache
        if cache is None or processor.volume_processor is None:
            return
        for root in dict.fromkeys(self._dataset(name).volume_root for name in self.recipe.mixture(self.stage)):
            processor.volume_processor.use_cache(cache, root)

    def has_remote_data(self) -> bool:
        """Whether records, images, volumes or prepared volumes of the stage are in an object store."""
        datasets = [self._dataset(name) for name in self.recipe.mixture(self.stage)]
        packed = (self.recipe.run.volume_cache, self.recipe.run.feature_shards)
        return any(dataset.has_remote_media for dataset in datasets) or any(map(is_url, packed))

    def steps(self, mixture: Mixture) -> int:
        """Return the number of optimizer steps; the last step of the last epoch is filled from the next epoch."""
        if self.stage.max_steps is not None:
            return self.stage.max_steps
        epochs = self.stage.epochs if self.stage.epochs is not None else 1.0
        return max(1, -int(-epochs * mixture.epoch_size // self.stage.batch_size))


def _some(dataset: SampleDataset) -> Iterator[Sample]:
    step = max(1, len(dataset) // _RECORDS_FOR_PROMPTS)
    return (dataset.sample(index) for index in range(0, len(dataset), step))
