"""Choice of the way in which the cross-entropy is computed from hidden states."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from medmvl.errors import RecipeError, require
from medmvl.models.head_loss import linear_head


def loss_kernel(wanted: str, supervised_logits: bool, llm: PreTrainedModel, device: torch.device) -> str | None:
    """Return the kernel of `medmvl.models.head_loss`; None: compute all supervised logits at once.

    Args:
        wanted: "auto", "full", "chunked" or "liger".
        supervised_logits: whether logits are computed only where there is a label, which the kernels need.
        llm: the language model.
        device: on which the stage trains.

    Raises:
        RecipeError: if the LLM or the device does not allow the wanted kernel.
        MissingExtraError: if Liger is wanted and not installed.
    """
    possible = supervised_logits and linear_head(llm) is not None
    if wanted == "auto":
        return "chunked" if possible else None
    if wanted == "full":
        return None
    if not possible:
        raise RecipeError(
            f"cross_entropy: {wanted} needs an LLM whose logits are its head's output as it is; this one "
            "changes them afterwards, or its head is not a plain linear layer. Use auto or full."
        )
    if wanted == "liger":
        if device.type != "cuda":
            raise RecipeError(f"cross_entropy: liger runs on CUDA devices, this run is on {device.type}. Use auto.")
        require("liger_kernel", "liger")
    return wanted
