"""Train a recipe: build, then for each stage load, apply, run, finish."""

from __future__ import annotations

import errno
import importlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed
from transformers.utils import logging as hf_logging

from medmvl.data.dataset import SampleDataset
from medmvl.data.mixture import Mixture
from medmvl.errors import RecipeError, TrainingError, did_you_mean
from medmvl.files import PathLike
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.processing import MedMVLProcessor
from medmvl.processing.pairs import PairProcessor
from medmvl.training import zero
from medmvl.training.arguments import loss_kernel, stage_seed, training_arguments, use_cpu, with_zero
from medmvl.training.attention import PACKED, attention, supports_packing
from medmvl.training.augmentation import Augmenter
from medmvl.training.batches import BatchMaker, EncodedRecords, StepSampler, StepShape, cost_of
from medmvl.training.build import build
from medmvl.training.callbacks import Bar, SaveAndStop, StageCallback, StepLog, StopSignal, TensorBoard
from medmvl.training.checkpoints import newest_whole
from medmvl.training.cpu import keep_few_kernels, whole_attention_on_cpu
from medmvl.training.distributed import barrier, is_main_process, join, several_processes, shard
from medmvl.training.features import StoredMedia, store_features
from medmvl.training.finish import finish_stage
from medmvl.training.muon import require_muon
from medmvl.training.phantoms import draw_phantoms
from medmvl.training.recipe import Recipe, StageSection
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run_folder import RunFolder, save_finished
from medmvl.training.stage import AppliedStage, apply_stage, print_stage
from medmvl.training.trainer import StageTrainer
from medmvl.training.watch import Average, HeldOut, Watch

logger = logging.getLogger(__name__)


class TrainingInterruptedError(TrainingError):
    """The run was asked to stop (SIGTERM, SIGUSR1) and has written a checkpoint to resume from."""


def train(
    recipe: Recipe | PathLike | dict[str, Any],
    out: PathLike | None = None,
    *,
    resume: bool = False,
    stage: str | None = None,
    overrides: Iterable[str] = (),
) -> Path:
    """Train all stages of a recipe, or one, and return the folder of the last finished checkpoint.

    Args:
        recipe: a YAML file, a dictionary or a Recipe.
        out: the run folder; default `runs/<recipe name>`.
        resume: go on from whatever is there; with everything done, do nothing.
        stage: run only this stage; what it starts from must be finished.
        overrides: `key.path=value` settings.

    Raises:
        RecipeError: if the recipe is not valid, or `out` holds a run and `resume` is not set.
        DataError, ModelError: if data or parts cannot be used.
        TrainingError: if training cannot go on (no finite gradients, no memory, no disk space).
        TrainingInterruptedError: if the run was asked to stop; a checkpoint is there.
    """
    recipe = load_recipe(recipe, overrides)
    chosen = choose_stages(recipe, stage)
    prepare(recipe)
    folder = RunFolder(Path(out) if out is not None else Path("runs") / recipe.name)
    if is_main_process():
        draw_phantoms(recipe)
        folder.open(recipe, resume or stage is not None)
    barrier()
    for section in chosen:
        if folder.finished(folder.stage(section.name)):
            logger.info("Stage %s is finished.", section.name)
            continue
        with plain_errors(section):
            run_stage(recipe, section, folder)
        if is_main_process():
            folder.publish(section.name)
    return folder.model if chosen[-1] is recipe.stages[-1] else folder.stage(chosen[-1].name)


def run_stage(recipe: Recipe, stage: StageSection, folder: RunFolder) -> None:
    """Run one stage from its start or its newest checkpoint to its finished one."""
    if stage.objective == "contrastive":
        from medmvl.training.contrastive import run_contrastive  # it builds on this file

        run_contrastive(recipe, stage, folder)
        return
    model, processor = load_start(recipe, stage, folder)
    set_seed(stage_seed(recipe, stage))
    if stage.template is not None:
        processor.with_template(stage.template)
    use_volume_cache(recipe, stage, processor)
    spread = recipe.run.strategy != "ddp" and several_processes()  # then the finished stage is put together from pieces
    applied = apply_stage(model, stage, keep_originals=is_main_process() and not spread)
    mixture = build_mixture(recipe, stage)
    if is_main_process():
        print_stage(applied, stage)
    trainer = build_trainer(recipe, stage, folder, applied, processor, mixture)
    with attention(model.language_model, PACKED if trainer.packed else None):
        run_to_the_end(trainer, stage, folder)
    finish_stage(recipe, stage, folder, start_folder(recipe, stage, folder), trainer, processor)


def run_to_the_end(trainer: StageTrainer, stage: StageSection, folder: RunFolder) -> None:
    """Train from the newest checkpoint on, and choose the weights that the stage ends with.

    Raises:
        TrainingInterruptedError: if the run was asked to stop; a checkpoint is there.
    """
    checkpoint = newest_whole(folder.checkpoints(stage.name))
    with StopSignal(trainer), whole_attention_on_cpu():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.interrupted and trainer.state.global_step < trainer.state.max_steps:
        raise TrainingInterruptedError(
            f"Stage {stage.name!r} was stopped after step {trainer.state.global_step} of {trainer.state.max_steps} "
            "and has written a checkpoint. The same command with --resume goes on from there."
        )
    trainer.settle(best=stage.evaluate is not None and stage.evaluate.patience is not None)


def load_start(
    recipe: Recipe, stage: StageSection, folder: RunFolder
) -> tuple[MedMVLForConditionalGeneration, MedMVLProcessor]:
    """Return the model and processor that a stage starts from.

    Raises:
        RecipeError: if an earlier stage that it starts from is not finished.
    """
    source = ready_start(recipe, stage, folder)
    model = MedMVLForConditionalGeneration.from_pretrained(source)
    return model, MedMVLProcessor.from_pretrained(source)


def ready_start(recipe: Recipe, stage: StageSection, folder: RunFolder) -> Path:
    """Return the checkpoint folder that a stage starts from, after making it if it is the model as built.

    Raises:
        RecipeError: if it is an earlier stage that is not finished.
    """
    source = start_folder(recipe, stage, folder)
    if source == folder.init and not folder.finished(source):
        set_seed(recipe.seed)
        if is_main_process():
            model, processor = build(recipe)
            save_finished(source, model.save_pretrained, processor, recipe, None)
        barrier()
    if not folder.finished(source) and source.parent == folder.root:
        raise RecipeError(f"Stage {stage.name!r} starts from {source.name!r}, which is not finished. Run that first.")
    return source


def start_folder(recipe: Recipe, stage: StageSection, folder: RunFolder) -> Path:
    """Return the checkpoint folder that a stage starts from."""
    names = [section.name for section in recipe.stages]
    index = names.index(stage.name)
    if stage.from_ is not None:
        return folder.stage(stage.from_) if stage.from_ in names else Path(stage.from_)
    if index > 0:
        return folder.stage(names[index - 1])
    return Path(recipe.model.from_) if recipe.model.from_ is not None else folder.init


def build_mixture(recipe: Recipe, stage: StageSection) -> Mixture:
    """Return the stage's data."""
    weights = recipe.mixture(stage)
    return Mixture(
        {name: open_dataset(recipe, name) for name in weights}, weights, stage.temperature, stage_seed(recipe, stage)
    )


def open_dataset(recipe: Recipe, name: str) -> SampleDataset:
    """Open one of the recipe's data sets."""
    section = recipe.data[name]
    roots = [recipe.path(root) if root is not None else None for root in (section.image_root, section.volume_root)]
    return SampleDataset(recipe.path(section.path), *roots, tasks=section.tasks)


def use_volume_cache(recipe: Recipe, stage: StageSection, processor: MedMVLProcessor | PairProcessor) -> None:
    """Let the processor take prepared volumes from the recipe's cache, if it names one.

    Raises:
        GeometryError: if the cache was made with another geometry.
    """
    if recipe.run.volume_cache is None or processor.volume_processor is None:
        return
    for root in dict.fromkeys(open_dataset(recipe, name).volume_root for name in recipe.mixture(stage)):
        processor.volume_processor.use_cache(recipe.run.volume_cache, root)


def total_steps(stage: StageSection, mixture: Mixture) -> int:
    """Return the number of optimiser steps; the last step of the last epoch is filled up from the next epoch."""
    if stage.max_steps is not None:
        return stage.max_steps
    epochs = stage.epochs if stage.epochs is not None else 1.0
    return max(1, -int(-epochs * mixture.epoch_size // stage.batch_size))


def build_trainer(
    recipe: Recipe,
    stage: StageSection,
    folder: RunFolder,
    applied: AppliedStage,
    processor: MedMVLProcessor,
    mixture: Mixture,
) -> StageTrainer:
    """Join model, data and settings into a trainer."""
    steps = total_steps(stage, mixture)
    args = training_arguments(recipe, stage, folder, steps)
    shape = StepShape.of(stage.batch_size, stage.micro_batch_size, args.world_size)
    args.gradient_accumulation_steps = shape.accumulation
    level = zero.LEVELS.get(recipe.run.strategy) if args.world_size > 1 else None
    if level is not None:
        args = with_zero(args, stage, level)
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs in one process would mean DataParallel; torchrun is the way
    sampler = StepSampler(
        mixture, steps, shape, args.process_index, lambda number: cost_of(mixture.sample(number), processor)
    )
    packed = stage.packing and supports_packing(applied.model.language_model)
    changes = stage.augment.settings() if stage.augment is not None else {}
    augment = Augmenter.of(changes, processor, stage_seed(recipe, stage)) if changes else None
    stored = stored_media(stage, folder, applied, processor, mixture, args) if stage.feature_cache else None
    if level is not None:
        zero.prepare(applied.model, stored.stores if stored is not None else (), level)
    watch = None
    if stage.evaluate is not None:
        held_out = held_out_data(recipe, stage)
        watch = Watch(folder.root, stage.name, stage.evaluate, held_out, processor, packed)
    callbacks, average = stage_callbacks(recipe, stage, folder, watch)
    if recipe.run.strategy == "fsdp" and args.world_size > 1:
        shard(applied.model, args.device, torch.bfloat16 if stage.precision == "bf16" else None)
        applied.rebind()
    trainer = StageTrainer(
        applied,
        args,
        sampler,
        EncodedRecords(mixture, processor, recipe.run.cache_megabytes * 2**20, stored, augment),
        BatchMaker(processor, packed, stage.supervised_logits, few_lengths=stage.compile),
        callbacks=list(callbacks),
        keep=stage.keep,
        stop_after_nans=stage.stop_after_nans,
        schedule=stage.scheduler,
        prefetch=recipe.run.prefetch,
        average=average,
        cross_entropy=loss_kernel(stage, applied, args.device),
        muon=stage.optimizer == "muon",
    )
    for callback in callbacks:
        callback.trainer = trainer
    return trainer


def held_out_data(recipe: Recipe, stage: StageSection) -> dict[str, SampleDataset]:
    """Open what a stage looks at while it trains."""
    return {name: open_dataset(recipe, name) for name in stage.evaluate.data} if stage.evaluate is not None else {}


def stage_callbacks(
    recipe: Recipe, stage: StageSection, folder: RunFolder, watch: HeldOut | None
) -> tuple[list[StageCallback], Average | None]:
    """Return what happens beside the steps of a stage, in order, and the moving average if there is one."""
    callbacks: list[StageCallback] = [StepLog(folder.log, stage.name), SaveAndStop(stage.save_every)]
    if watch is not None:
        callbacks.append(watch)
    average = Average(stage.ema) if stage.ema is not None else None
    if average is not None:
        callbacks.append(average)
    if recipe.run.tensorboard:
        callbacks.append(TensorBoard(folder.stage(stage.name) / "tensorboard"))
    if recipe.run.progress:
        callbacks.append(Bar(stage.name))
    return callbacks, average


def stored_media(
    stage: StageSection,
    folder: RunFolder,
    applied: AppliedStage,
    processor: MedMVLProcessor,
    mixture: Mixture,
    args: TrainingArguments,
) -> StoredMedia:
    """Run the frozen encoders over the stage's media, each device over its share."""
    applied.model.to(args.device)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(stage.precision)
    stored = store_features(
        applied.model,
        processor,
        mixture,
        folder.root / "features",
        rank=args.process_index,
        world=args.world_size,
        autocast=(lambda: torch.autocast(args.device.type, half)) if half is not None else None,
    )
    barrier()
    return stored


# --- around a run -----------------------------------------------------------------------------------------------


def choose_stages(recipe: Recipe, name: str | None) -> list[StageSection]:
    """Return all stages, or the one called `name`."""
    if name is None:
        return recipe.stages
    names = [stage.name for stage in recipe.stages]
    if name not in names:
        raise RecipeError(f"The recipe has no stage {name!r}. {did_you_mean(name, names)}")
    return [recipe.stage(name)]


def prepare(recipe: Recipe) -> None:
    """Import the recipe's plugins and quieten what is not meant for the user.

    Raises:
        RecipeError, MissingExtraError: if a plugin cannot be imported, or this torch lacks an optimiser.
    """
    if any(stage.optimizer == "muon" for stage in recipe.stages):
        require_muon()
    for module in recipe.plugins:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise RecipeError(f"The plugin {module!r} cannot be imported: {error}.") from error
    hf_logging.disable_progress_bar()
    on_cpu = use_cpu(recipe.run)
    if on_cpu:
        keep_few_kernels()
    join(cpu=on_cpu)


@contextmanager
def plain_errors(stage: StageSection) -> Iterator[None]:
    """Turn what the machine does to a run into an error that says what was kept and what to do."""
    kept = "Finished stages and checkpoints are kept; the same command with --resume goes on from the newest one."
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"Stage {stage.name!r} ran out of memory. Lower micro_batch_size (the result stays the same), or set "
            f"activation_checkpointing. {kept}"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingError(f"Stage {stage.name!r}: the disk is full ({error.filename}). Make room. {kept}") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        first_line = str(error).splitlines()[0]
        raise TrainingError(
            f"Stage {stage.name!r}: a process that loads data has died ({first_line}). Often it ran out of memory: lower "
            f"run.workers. {kept}"
        ) from error
