"""Optimizers by their names in a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medmvl.errors import require
from medmvl.training.acceleration.muon import MuonWithAdamW, hidden_matrices


def build_optimizer(
    name: str, groups: list[dict[str, Any]], model: nn.Module, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Return an optimizer.

    Args:
        name: "adamw", "adamw_8bit" (bitsandbytes) or "muon".
        groups: torch's parameter groups, each with its `lr` and `weight_decay`.
        model: holds the parameters; Muon asks it which are matrices of linear layers.
        betas: Adam's decay rates.

    Raises:
        MissingExtraError: if the optimizer's package is not installed.
        RecipeError: if the optimizer finds nothing to train.
    """
    if name == "muon":
        return MuonWithAdamW(groups, hidden_matrices(model), betas)
    if name == "adamw_8bit":
        optimizer: torch.optim.Optimizer = require("bitsandbytes", "quantize").optim.AdamW8bit(groups, betas=betas)
        return optimizer
    return torch.optim.AdamW(groups, betas=betas)
