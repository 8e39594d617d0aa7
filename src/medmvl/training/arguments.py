"""A stage's settings in the words of transformers, torch and DeepSpeed; what this machine cannot run is refused."""

from __future__ import annotations

import dataclasses

import torch
from transformers import TrainingArguments

from medmvl.errors import RecipeError, require
from medmvl.models.head_loss import plain_head
from medmvl.training import zero
from medmvl.training.recipe import Recipe, RunSection, StageSection
from medmvl.training.run_folder import RunFolder
from medmvl.training.stage import AppliedStage


def stage_seed(recipe: Recipe, stage: StageSection) -> int:
    """Return a seed of the stage's own: two stages must not see the data in the same order."""
    return recipe.seed + 1000 * [section.name for section in recipe.stages].index(stage.name)


def training_arguments(recipe: Recipe, stage: StageSection, folder: RunFolder, steps: int) -> TrainingArguments:
    """Return the settings in the words of transformers.

    Raises:
        RecipeError, MissingExtraError: if the stage wants an optimiser or a precision where it cannot run.
    """
    run = recipe.run
    if stage.precision == "fp16" and use_cpu(run):
        raise RecipeError(f"Stage {stage.name!r}: fp16 needs an accelerator, this run is on the CPU. Use bf16 or fp32.")
    if stage.optimizer == "adamw_8bit":
        if use_cpu(run) or not torch.cuda.is_available():
            raise RecipeError(f"Stage {stage.name!r}: adamw_8bit runs on CUDA devices only. Use adamw.")
        require("bitsandbytes", "quantize")
    return TrainingArguments(
        output_dir=str(folder.checkpoints(stage.name)),
        max_steps=steps,
        per_device_train_batch_size=stage.batch_size,
        learning_rate=max(part.lr or stage.lr or 0.0 for part in stage.train.values()),
        warmup_steps=stage.warmup,
        optim="adamw_bnb_8bit" if stage.optimizer == "adamw_8bit" else "adamw_torch",
        adam_beta1=stage.betas[0],
        adam_beta2=stage.betas[1],
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        bf16=stage.precision == "bf16",
        fp16=stage.precision == "fp16",
        seed=stage_seed(recipe, stage),
        use_cpu=use_cpu(run),
        dataloader_num_workers=run.workers,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,  # the model touches every trainable weight in every step
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def with_zero(args: TrainingArguments, stage: StageSection, level: int) -> TrainingArguments:
    """Return the same settings with DeepSpeed's, of its stage `level`.

    Raises:
        RecipeError: for a stage that DeepSpeed cannot run here.
        MissingExtraError: if DeepSpeed is not installed.
    """
    if stage.ema is not None:
        raise RecipeError(
            f"Stage {stage.name!r}: run.strategy zero{level} keeps no moving average. Leave ema out, or use ddp."
        )
    return dataclasses.replace(args, deepspeed=zero.settings(stage, level))


def use_cpu(run: RunSection) -> bool:
    """Say whether to stay on the CPU.

    Raises:
        RecipeError: if the device that the recipe names is not there.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if run.device != "auto" and not present[run.device]:
        raise RecipeError(f"run.device is {run.device!r}, which this machine does not have. Use auto or cpu.")
    return run.device == "cpu" or not (present["cuda"] or present["mps"])


def loss_kernel(stage: StageSection, applied: AppliedStage, device: torch.device) -> str | None:
    """Return how the loss is computed from hidden states; None: from all supervised logits at once.

    Raises:
        RecipeError: if the recipe asks for a way that the LLM or the device does not allow.
        MissingExtraError: if it asks for Liger and that is not installed.
    """
    possible = stage.supervised_logits and plain_head(applied.model.language_model) is not None
    if stage.cross_entropy == "auto":
        return "chunked" if possible else None
    if stage.cross_entropy == "full":
        return None
    if not possible:
        raise RecipeError(
            f"cross_entropy: {stage.cross_entropy} needs an LLM whose logits are its head's output as it is; this one "
            "changes them afterwards, or its head is not a plain linear layer. Use auto or full."
        )
    if stage.cross_entropy == "liger":
        if device.type != "cuda":
            raise RecipeError(f"cross_entropy: liger runs on CUDA devices, this run is on {device.type}. Use auto.")
        require("liger_kernel", "liger")
    return stage.cross_entropy
