"""Preparation of the process for a run: plugins, device, other processes."""

from __future__ import annotations

import torch
from transformers.utils import logging as hf_logging

from medmvl.errors import RecipeError, require
from medmvl.training.acceleration.cpu import keep_few_kernels
from medmvl.training.acceleration.muon import require_muon
from medmvl.training.engine.distributed import join
from medmvl.training.recipe import Recipe
from medmvl.training.recipe_io import import_plugins


def prepare(recipe: Recipe) -> None:
    """Import the recipe's plugins, join other processes, and switch off the libraries' progress bars.

    Raises:
        RecipeError, MissingExtraError: if a plugin cannot be imported, or this torch lacks an optimizer.
    """
    if any(stage.optimizer == "muon" for stage in recipe.stages):
        require_muon()
    import_plugins(recipe.plugins)
    hf_logging.disable_progress_bar()
    on_cpu = use_cpu(recipe.run.device)
    if on_cpu:
        keep_few_kernels()
    join(cpu=on_cpu)


def use_cpu(device: str) -> bool:
    """Whether to train on the CPU.

    Args:
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        RecipeError: if this machine does not have the device.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device != "auto" and not present[device]:
        raise RecipeError(f"run.device is {device!r}, which this machine does not have. Use auto or cpu.")
    return device == "cpu" or not (present["cuda"] or present["mps"])


def require_hardware(stage: str, precision: str, optimizer: str, on_cpu: bool) -> None:
    """Raise if a stage's precision or optimizer cannot run here.

    Args:
        stage: name of the stage, for messages.
        precision: "fp32", "bf16" or "fp16".
        optimizer: "adamw", "adamw_8bit" or "muon".
        on_cpu: whether the stage runs on the CPU.

    Raises:
        RecipeError: if it needs another device.
        MissingExtraError: if it needs a package that is not installed.
    """
    if precision == "fp16" and on_cpu:
        raise RecipeError(f"Stage {stage!r}: fp16 needs an accelerator, this run is on the CPU. Use bf16 or fp32.")
    if optimizer == "adamw_8bit":
        if on_cpu or not torch.cuda.is_available():
            raise RecipeError(f"Stage {stage!r}: adamw_8bit runs on CUDA devices only. Use adamw.")
        require("bitsandbytes", "quantize")
