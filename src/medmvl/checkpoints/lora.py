"""Merging of LoRA weights in an intermediate reference save: W + (alpha / r) B A (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

from medmvl.errors import CheckpointError
from medmvl.models.weight_writer import Entry
from medmvl.models.weights import Weights

#: Names that PEFT gives the tensors of an adapted linear layer.
UNMERGED = re.compile(r"\.(base_layer\.(weight|bias)|lora_[AB]\.default\.weight)$")


def merged_entries(weights: Weights, prefix: str, target: str, alpha: float | None) -> dict[str, Entry]:
    """Return entries that compute the merged weights of all adapted layers.

    Args:
        weights: weights of an intermediate save of the trainer.
        prefix: prefix of the adapted model's names in `weights`.
        target: what replaces the prefix in the MedM-VL model.
        alpha: LoRA's alpha; the save holds it in a pickle only, which is not read.

    Raises:
        CheckpointError: if alpha is not given or a layer is incomplete.
    """
    if alpha is None:
        raise CheckpointError(
            f"{weights.folder} is an intermediate save with unmerged LoRA weights, and their alpha is in no readable file. "
            "Give it with --lora-alpha (the reference's training argument llm_lora_alpha)."
        )
    entries = {}
    for name in weights:
        if name.endswith(".base_layer.bias"):
            entries[_target(name, prefix, target)] = Entry(name, weights.shape(name), _reader(weights, name))
        elif name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            entries[_target(name, prefix, target)] = Entry(
                name, weights.shape(name), _merger(weights, layer, float(alpha))
            )
    return entries


def _target(name: str, prefix: str, target: str) -> str:
    return target + name.removeprefix(prefix).replace(".base_layer.", ".")


def _reader(weights: Weights, name: str) -> Callable[[], Tensor]:
    return lambda: weights[name]


def _merger(weights: Weights, layer: str, alpha: float) -> Callable[[], Tensor]:
    parts = [f"{layer}.base_layer.weight", f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight"]
    if missing := [part for part in parts if part not in weights]:
        raise CheckpointError(f"{weights.folder} lacks {missing[0]}: the adapted layer {layer} is incomplete.")

    def merge() -> Tensor:
        base, down, up = (weights[part] for part in parts)
        delta = (up.float() @ down.float()) * (alpha / down.shape[0])
        return (base.float() + delta).to(base.dtype)

    return merge
