"""Training of a recipe: build the model, then load, adapt, train and finish each stage."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from transformers import set_seed

from medmvl.data.mixture import Mixture
from medmvl.errors import RecipeError, TrainingError, did_you_mean
from medmvl.files import OutputLock, PathLike
from medmvl.training.acceleration import deepspeed
from medmvl.training.acceleration.cpu import whole_attention_on_cpu
from medmvl.training.augmentation import Augmenter
from medmvl.training.context import StageContext
from medmvl.training.engine.callbacks import EMA, Callback, Checkpoints, ProgressBar, StepLog
from medmvl.training.engine.checkpoints import newest_whole
from medmvl.training.engine.dataset import TrainingDataset
from medmvl.training.engine.devices import Engine, new_accelerator
from medmvl.training.engine.distributed import barrier, is_main_process, shard
from medmvl.training.engine.loop import TrainingLoop
from medmvl.training.engine.optimizers import build_optimizer
from medmvl.training.engine.progress import LoopSettings
from medmvl.training.engine.sampling import BatchLayout, StepSampler
from medmvl.training.engine.schedule import warmup_steps
from medmvl.training.engine.signals import StopSignal
from medmvl.training.engine.trackers import Trackers
from medmvl.training.engine.trainable import print_stage
from medmvl.training.engine.validation import Validation
from medmvl.training.environment import prepare, require_hardware, use_cpu
from medmvl.training.leaks import leak_warnings
from medmvl.training.objectives import OBJECTIVES, Objective
from medmvl.training.objectives.base import DeviceFacts
from medmvl.training.phantoms import draw_phantoms
from medmvl.training.recipe import Recipe, StageSection
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run_folder import RunFolder

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
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train all stages of a recipe, or one, and return the folder of the last finished checkpoint.

    Args:
        recipe: a YAML file, a dictionary or a Recipe.
        out: the run folder; default `runs/<recipe name>`.
        resume: continue an existing run; a finished one is left as it is.
        stage: run only this stage; the stage it starts from must be finished.
        overrides: `key.path=value` settings.
        callbacks: called at the events of every stage, see `medmvl.training.engine.callbacks.Callback`.

    Raises:
        RecipeError: if the recipe is not valid, or `out` holds a run and `resume` is not set.
        DataError, ModelError: if data or parts cannot be used.
        TrainingError: if training cannot continue (no finite gradients, no memory, no disk space).
        TrainingInterruptedError: if the run was asked to stop, after writing a checkpoint.
        BusyError: naming the process, if another one trains in `out`.
    """
    recipe = load_recipe(recipe, overrides)
    chosen = choose_stages(recipe, stage)
    prepare(recipe)
    folder = RunFolder(Path(out) if out is not None else Path("runs") / recipe.name)
    with ExitStack() as running:
        if is_main_process():
            running.enter_context(OutputLock(folder.root, folder=True))
            draw_phantoms(recipe)
            folder.open(recipe, resume or stage is not None)
            _warn_of_leaks(recipe, chosen, folder)
        barrier()
        for section in chosen:
            if folder.finished(folder.stage(section.name)):
                if is_main_process():
                    Console(stderr=True).print(f"Stage {section.name} is finished.", highlight=False, markup=False)
                    if section is recipe.stages[-1] and not folder.published(section.name):
                        folder.publish(section.name)  # the run was killed between the two
                continue
            with plain_errors(section.name):
                run_stage(StageContext(recipe, section, folder), callbacks)
            if is_main_process():
                folder.publish(section.name)
    return folder.model if chosen[-1] is recipe.stages[-1] else folder.stage(chosen[-1].name)


def _warn_of_leaks(recipe: Recipe, stages: Sequence[StageSection], folder: RunFolder) -> None:
    """Log the patients that training and held-out data share, for the stages that are still to run."""
    for section in stages:
        if not folder.finished(folder.stage(section.name)):
            for line in leak_warnings(StageContext(recipe, section, folder)):
                logger.warning(line)


def run_stage(context: StageContext, callbacks: Sequence[Callback] = ()) -> None:
    """Run one stage from its start or its newest checkpoint to its finished one.

    Args:
        context: the stage.
        callbacks: besides those that the recipe asks for.
    """
    stage = context.stage
    require_hardware(stage.name, stage.precision, stage.optimizer, use_cpu(context.recipe.run.device))
    objective = OBJECTIVES[stage.objective].load(context)
    set_seed(context.seed)
    context.use_volume_cache(objective.processor)
    objective.adapt()
    if is_main_process():
        print_stage(objective.trainable, stage.name)
    loop = build_loop(context, objective, context.mixture(), callbacks)
    with objective.training():
        run_to_the_end(loop, context)
    objective.finish(loop.engine, context)


def run_to_the_end(loop: TrainingLoop, context: StageContext) -> None:
    """Train from the newest checkpoint on, and load the weights that the stage ends with.

    Raises:
        TrainingInterruptedError: if the run was asked to stop, after writing a checkpoint.
    """
    checkpoint = newest_whole(loop.settings.checkpoints)
    if checkpoint is not None and is_main_process():
        done, name = checkpoint.name.rpartition("-")[2], context.stage.name
        message = f"Stage {name} continues after step {done} of {loop.settings.steps}, from {checkpoint}."
        Console(stderr=True, soft_wrap=True).print(message, highlight=False, markup=False)
    whole = whole_attention_on_cpu() if loop.objective.attention_in_fp32 else nullcontext()
    with StopSignal(loop), whole:
        loop.run(checkpoint)
    if loop.interrupted and not loop.is_done:
        raise TrainingInterruptedError(
            f"Stage {context.stage.name!r} was stopped after step {loop.state.step} of {loop.settings.steps} "
            "and has written a checkpoint. The same command with --resume continues from there."
        )
    evaluate = context.stage.evaluate
    loop.load_final_weights(best=evaluate is not None and evaluate.patience is not None)


# --- from the recipe's sections to the loop ---------------------------------------------------------------------------


def build_loop(
    context: StageContext, objective: Objective, mixture: Mixture, callbacks: Sequence[Callback]
) -> TrainingLoop:
    """Join model, data and settings into a training loop.

    Args:
        context: the stage.
        objective: adapted to the stage.
        mixture: the stage's data.
        callbacks: besides those that the recipe asks for.

    Raises:
        RecipeError, MissingExtraError: if the devices or packages here do not allow a setting.
    """
    recipe, stage = context.recipe, context.stage
    settings = loop_settings(context, context.steps(mixture))
    world = int(torch.distributed.get_world_size()) if torch.distributed.is_initialized() else 1
    layout = BatchLayout.of(stage.batch_size, stage.micro_batch_size, world)
    accelerator = accelerator_for(context, objective, layout)
    objective.prepare(device_facts(accelerator, stage.precision), mixture)
    if context.strategy == "fsdp":
        half = torch.bfloat16 if stage.precision == "bf16" else None
        shard(objective.trainable.model, accelerator.device, half)
        objective.trainable.rebind()
    else:
        objective.trainable.model.to(accelerator.device)
    model = objective.trainable.model
    optimizer = build_optimizer(stage.optimizer, objective.trainable.optimizer_groups(), model, stage.betas)
    changes = stage.augment.settings() if stage.augment is not None else {}
    augment = Augmenter.of(changes, objective.processor, context.seed) if changes else None
    ahead = objective.read_ahead if context.has_remote_data() else None
    data = TrainingDataset(mixture, objective.encode, recipe.run.cache_megabytes * 2**20, augment, ahead)
    rank = int(accelerator.process_index)
    sampler = StepSampler(mixture, settings.steps, layout, rank, lambda number: objective.size(mixture.sample(number)))
    chosen = [*stage_callbacks(context), *callbacks]
    return TrainingLoop(Engine(accelerator, model, optimizer), objective, data, sampler, settings, chosen)


def loop_settings(context: StageContext, steps: int) -> LoopSettings:
    """Return the settings of a stage's loop."""
    stage, run = context.stage, context.recipe.run
    return LoopSettings(
        stage=stage.name,
        steps=steps,
        seed=context.seed,
        checkpoints=context.folder.checkpoints(stage.name),
        scheduler=stage.scheduler,
        warmup=warmup_steps(stage.warmup, steps),
        max_grad_norm=stage.max_grad_norm,
        keep=stage.keep,
        stop_after_nans=stage.stop_after_nans,
        workers=run.workers,
        prefetch=run.prefetch,
    )


def accelerator_for(context: StageContext, objective: Objective, layout: BatchLayout) -> Accelerator:
    """Return accelerate's interface to the devices for a stage.

    Raises:
        RecipeError: for a moving average with DeepSpeed.
        MissingExtraError: if DeepSpeed is not installed.
    """
    stage, level = context.stage, context.zero_level
    on_cpu = use_cpu(context.recipe.run.device)
    if level is None:
        return new_accelerator(stage.precision, on_cpu)
    if stage.ema is not None:
        raise RecipeError(
            f"Stage {stage.name!r}: run.strategy zero{level} keeps no moving average. Leave ema out, or use ddp."
        )
    configuration = deepspeed.settings(
        level,
        accumulation=layout.accumulation,
        world=layout.world,
        width=objective.trainable.model.config.text_config.hidden_size,
        max_grad_norm=stage.max_grad_norm,
        half=stage.precision == "bf16",
    )
    return new_accelerator(stage.precision, on_cpu, deepspeed.plugin(configuration))


def device_facts(accelerator: Accelerator, precision: str) -> DeviceFacts:
    """Return the devices of a stage, before the model is prepared for them."""
    device = accelerator.device
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    autocast = (lambda: torch.autocast(device.type, half)) if half is not None else None
    return DeviceFacts(device, int(accelerator.process_index), int(accelerator.num_processes), autocast)


def stage_callbacks(context: StageContext) -> list[Callback]:
    """Return the callbacks that a recipe asks for, in the order in which they run."""
    stage, run, folder = context.stage, context.recipe.run, context.folder
    callbacks: list[Callback] = [StepLog(folder.log), Checkpoints(stage.save_every, stage.save_minutes)]
    if (evaluate := stage.evaluate) is not None:
        callbacks.append(
            Validation(folder.root, context.held_out(), evaluate.every, evaluate.metric, evaluate.patience)
        )
    if stage.ema is not None:
        callbacks.append(EMA(stage.ema))
    if run.trackers:
        callbacks.append(Trackers(run.trackers, context.recipe.name, context.target))
    if run.progress:
        callbacks.append(ProgressBar())
    return callbacks


def choose_stages(recipe: Recipe, name: str | None) -> list[StageSection]:
    """Return all stages, or the one called `name`."""
    if name is None:
        return recipe.stages
    names = [stage.name for stage in recipe.stages]
    if name not in names:
        raise RecipeError(f"The recipe has no stage {name!r}. {did_you_mean(name, names)}")
    return [recipe.stage(name)]


@contextmanager
def plain_errors(stage: str) -> Iterator[None]:
    """Turn errors of the machine into errors that say what is kept and what to do."""
    kept = "Finished stages and checkpoints are kept; the same command with --resume continues from the newest one."
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"Stage {stage!r} ran out of memory. Lower micro_batch_size (the result stays the same), or set "
            f"activation_checkpointing. {kept}"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingError(f"Stage {stage!r}: the disk is full ({error.filename}). Make room. {kept}") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        first_line = str(error).splitlines()[0]
        raise TrainingError(
            f"Stage {stage!r}: a process that loads data has died ({first_line}). Often it ran out of memory: lower "
            f"run.workers. {kept}"
        ) from error
