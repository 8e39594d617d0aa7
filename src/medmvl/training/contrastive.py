"""A contrastive stage: an encoder learns to find the report of its image or volume among others.

What trains is a dual encoder without the LLM. It is written as the stage begins (`<stage>/checkpoints/start`) and when it
is finished: in a recipe with an LLM the encoder goes into the model, which is the stage's finished checkpoint, and the
dual encoder lies beside it in `<stage>/encoder`; in a recipe without one the dual encoder is the finished checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from medmvl.data.mixture import Mixture
from medmvl.data.sample import Sample
from medmvl.errors import RecipeError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.contrastive import DualEncoder
from medmvl.models.contrastive.folder import ENCODER
from medmvl.models.contrastive.text import pool_text
from medmvl.processing import MedMVLProcessor
from medmvl.processing.pairs import PairProcessor
from medmvl.training.arguments import stage_seed, training_arguments
from medmvl.training.augmentation import Augmenter
from medmvl.training.batches import CHARACTERS_PER_TOKEN, EncodedRecords, StepSampler, StepShape
from medmvl.training.build_contrastive import build_dual_encoder
from medmvl.training.checkpoints import whole_folder
from medmvl.training.contrastive_trainer import ContrastiveTrainer, PairBatches
from medmvl.training.distributed import barrier, is_main_process
from medmvl.training.recipe import ContrastiveSection, PartSection, Recipe, StageSection
from medmvl.training.retrieval_watch import RetrievalWatch
from medmvl.training.run import (
    build_mixture,
    held_out_data,
    ready_start,
    run_to_the_end,
    stage_callbacks,
    start_folder,
    total_steps,
    use_volume_cache,
)
from medmvl.training.run_folder import RunFolder, save_finished, write_checkpoint
from medmvl.training.stage import AppliedStage, apply_stage, print_stage

#: The dual encoder as a stage begins, beside its checkpoints.
START = "start"


def run_contrastive(recipe: Recipe, stage: StageSection, folder: RunFolder) -> None:
    """Run one contrastive stage from its start or its newest checkpoint to its finished one."""
    source = start_of(recipe, stage, folder)
    dual, processor = load_dual_start(recipe, stage, folder, source)
    set_seed(stage_seed(recipe, stage))
    use_volume_cache(recipe, stage, processor)
    applied = apply_contrastive(dual, stage)
    mixture = build_mixture(recipe, stage)
    if is_main_process():
        print_stage(applied, stage)
    trainer = build_contrastive_trainer(recipe, stage, folder, applied, processor, mixture)
    run_to_the_end(trainer, stage, folder)
    if is_main_process():
        finish_contrastive(recipe, stage, folder, applied, processor, source)
    barrier()


def start_of(recipe: Recipe, stage: StageSection, folder: RunFolder) -> Path | None:
    """Return the folder that a stage starts from; None if it is an encoder without an LLM as the recipe describes it."""
    if recipe.model.encoder_only and start_folder(recipe, stage, folder) == folder.init:
        return None
    return ready_start(recipe, stage, folder)


def load_dual_start(
    recipe: Recipe, stage: StageSection, folder: RunFolder, source: Path | None
) -> tuple[DualEncoder, PairProcessor]:
    """Return what a stage starts with; it is made once, and read by all processes and by every resumption."""
    start = folder.checkpoints(stage.name) / START
    if not folder.finished(start):
        if is_main_process():
            set_seed(stage_seed(recipe, stage))
            dual, processor = build_dual_encoder(recipe, stage, source)
            with whole_folder(start) as aside:
                dual.save_pretrained(aside)
                processor.save_pretrained(aside)
        barrier()
    return DualEncoder.from_pretrained(start, dtype=torch.float32), PairProcessor.from_pretrained(start)


def apply_contrastive(dual: DualEncoder, stage: StageSection) -> AppliedStage:
    """Make trainable what a contrastive stage trains: the encoder, the text encoder as it says, and the projections.

    Raises:
        RecipeError: if `only` or `targets` match nothing.
    """
    text = (stage.contrastive or ContrastiveSection()).text
    train: dict[str, PartSection] = dict(stage.train.items())
    train |= {"text_encoder": text.train if text else PartSection(), "head": PartSection()}
    model: Any = dual
    applied = apply_stage(model, stage.model_copy(update={"train": train}))
    unused = _unused(dual)
    for part in applied.trained:
        for name in [name for name, parameter in part.parameters.items() if parameter in unused]:
            part.parameters.pop(name).requires_grad_(False)
    return applied


def _unused(dual: DualEncoder) -> set[nn.Parameter]:
    """Return the trained weights of the text encoder that its pooled features do not depend on (another pooling's head).

    They would never get a gradient, for which data parallelism waits.
    """
    encoder = dual.text_encoder
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    if not trained:
        return set()
    ids = torch.zeros(1, 2, dtype=torch.int64, device=trained[0].device)
    training = encoder.training
    encoder.eval()  # draws no random numbers
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        pooled = pool_text(encoder, ids, None, dual.config.spec.text_pooling)
        gradients = torch.autograd.grad(pooled.float().sum(), trained, allow_unused=True)
    encoder.train(training)
    return {parameter for parameter, gradient in zip(trained, gradients, strict=True) if gradient is None}


def pair_cost(sample: Sample, visual_tokens: int) -> tuple[str, float]:
    """Return, as `batches.cost_of` does, the kind of a pair (there is one only) and about how many tokens it takes."""
    said = sum(len(message.text) for message in sample.messages if message.role == "assistant")
    return "", visual_tokens + said / CHARACTERS_PER_TOKEN


def build_contrastive_trainer(
    recipe: Recipe,
    stage: StageSection,
    folder: RunFolder,
    applied: AppliedStage,
    processor: PairProcessor,
    mixture: Mixture,
) -> ContrastiveTrainer:
    """Join dual encoder, data and settings into a trainer.

    A dual encoder is small: every device holds it whole, also where `run.strategy` spreads the LLM of other stages.
    """
    dual: Any = applied.model
    steps = total_steps(stage, mixture)
    args = training_arguments(recipe, stage, folder, steps)
    shape = StepShape.of(stage.batch_size, stage.micro_batch_size, args.world_size)
    args.gradient_accumulation_steps = shape.accumulation
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs in one process would mean DataParallel; torchrun is the way
    tower = dual.config.tower(stage.modality)
    visual_tokens = tower.encoder_spec.grid(tower.input_size).tokens
    sampler = StepSampler(
        mixture, steps, shape, args.process_index, lambda number: pair_cost(mixture.sample(number), visual_tokens)
    )
    watch = None
    if stage.evaluate is not None:
        held_out = held_out_data(recipe, stage)
        watch = RetrievalWatch(folder.root, stage.name, stage.evaluate, held_out, processor)
    callbacks, average = stage_callbacks(recipe, stage, folder, watch)
    records: Any = processor  # a PairProcessor encodes samples as the model's own processor does
    changes = stage.augment.settings() if stage.augment is not None else {}
    augment = Augmenter.of(changes, records, stage_seed(recipe, stage)) if changes else None
    trainer = ContrastiveTrainer(
        applied,
        args,
        sampler,
        EncodedRecords(mixture, records, recipe.run.cache_megabytes * 2**20, augment=augment),
        PairBatches(processor),
        callbacks=list(callbacks),
        keep=stage.keep,
        stop_after_nans=stage.stop_after_nans,
        schedule=stage.scheduler,
        prefetch=recipe.run.prefetch,
        average=average,
        muon=stage.optimizer == "muon",
    )
    for callback in callbacks:
        callback.trainer = trainer
    return trainer


def finish_contrastive(
    recipe: Recipe,
    stage: StageSection,
    folder: RunFolder,
    applied: AppliedStage,
    processor: PairProcessor,
    source: Path | None,
) -> None:
    """Write the finished dual encoder and, in a recipe with an LLM, the model with the trained encoder in its place."""
    finished: Any = applied.finish()
    assert isinstance(finished, DualEncoder)
    finished.limit_scale()
    finished.to(getattr(torch, stage.save_dtype))
    target = folder.stage(stage.name)
    if recipe.model.encoder_only:
        save_finished(target, finished.save_pretrained, processor, recipe, stage.name)
        return
    assert source is not None
    with whole_folder(target / ENCODER) as aside:
        write_checkpoint(aside, finished.save_pretrained, processor, recipe, stage.name)
    model = MedMVLForConditionalGeneration.from_pretrained(source)
    part = model.parts()[f"{stage.modality}_encoder"]
    if part.state_dict().keys() != finished.encoder.state_dict().keys():
        raise RecipeError(f"{source} has changed since stage {stage.name!r} began. Start the stage anew.")
    part.load_state_dict(finished.encoder.state_dict())
    model.to(getattr(torch, stage.save_dtype))
    save_finished(target, model.save_pretrained, MedMVLProcessor.from_pretrained(source), recipe, stage.name)
