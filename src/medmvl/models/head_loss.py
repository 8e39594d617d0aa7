"""Cross-entropy from hidden states, without holding all logits of a large vocabulary at once.

The head and the loss run over a few rows at a time, and the gradients of each piece are taken at once, as in the Liger
kernels (arXiv 2410.10989): the same number of FLOPs as in one piece, and memory for one piece of logits. Exact but for
the order of summation (tested to 1e-6 in fp32).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from medmvl.errors import require
from medmvl.models.labels import IGNORE_INDEX

#: Logits held at once: 2 ** 25 fp32 values are 128 MB; at 150 000 words that is 220 rows.
PIECE = 2**25

#: Configuration keys by which some LLMs change logits after the head; then the head alone does not give the logits.
_AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_scale", "lm_head_multiplier")


def linear_head(language_model: PreTrainedModel) -> nn.Linear | None:
    """Return an LLM's head if its logits are the output of a linear layer; None if something changes them afterwards."""
    head = language_model.get_output_embeddings()
    config = language_model.config
    changed = any(getattr(config, key, None) not in (None, 1, 1.0) for key in _AFTER_HEAD)
    changed = changed or bool(getattr(config, "output_router_logits", False))  # adds a second loss
    return head if type(head) is nn.Linear and not changed and find_decoder(language_model) is not None else None


def find_decoder(language_model: PreTrainedModel) -> nn.Module | None:
    """Return the part of an LLM before its head; None if it cannot be found (Llama 4 returns itself as its decoder)."""
    for found in (language_model.get_decoder(), getattr(language_model, "model", None)):
        if isinstance(found, PreTrainedModel) and found is not language_model and not hasattr(found, "lm_head"):
            return found
    return None


def head_loss(
    hidden: Tensor, head: nn.Linear, targets: Tensor, count: Tensor | int | None = None, kernel: str = "chunked"
) -> Tensor:
    """Return the cross-entropy of `head(hidden)` with `targets`, summed and divided by `count`.

    Args:
        hidden: (K, H).
        targets: (K,) int64.
        count: what the sum is divided by; None: K, the mean.
        kernel: "chunked", or "liger" for the fused kernel of liger-kernel (CUDA only).

    Raises:
        MissingExtraError: if liger-kernel is asked for and not installed.
    """
    divisor = max(len(targets), 1) if count is None else count
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    if kernel == "liger":
        fused = require("liger_kernel.ops.fused_linear_cross_entropy", "liger")
        weight = head.weight.to(hidden.dtype)
        bias = head.bias.to(hidden.dtype) if head.bias is not None else None
        total = fused.LigerFusedLinearCrossEntropyFunction.apply(
            hidden, weight, targets, bias, None, IGNORE_INDEX, 0.0, 0.0, "sum"
        )
        return (total[0] if isinstance(total, tuple) else total) / divisor
    return _Pieces.apply(hidden, head.weight, head.bias, targets) / divisor


class _Pieces(torch.autograd.Function):
    """Sum of cross-entropies; weight and bias may be of another dtype than the hidden states, which they are cast to."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        wants = [ctx.needs_input_grad[index] for index in range(3)]
        used = weight.to(hidden.dtype)
        gradients = [
            torch.zeros_like(value) if wanted and value is not None else None
            for value, wanted in zip((hidden, weight, bias), wants, strict=True)
        ]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = max(1, PIECE // len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for begin in range(0, len(hidden), rows):
                part = slice(begin, begin + rows)
                logits = (hidden[part] @ used.T).float()
                if bias is not None:
                    logits += bias
                total += _loss_and_gradient(logits, targets[part], any(wants))
                _accumulate(gradients, part, logits, hidden[part], used)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (outer,) = outputs
        return (*(None if g is None else g * outer.to(g.dtype) for g in ctx.saved_tensors), None)


def _loss_and_gradient(logits: Tensor, targets: Tensor, wanted: bool) -> Tensor:
    """Return the summed loss of (k, V) fp32 logits, and if `wanted` put its gradient in their place."""
    normalizer = torch.logsumexp(logits, dim=-1)
    rows = torch.arange(len(targets), device=targets.device)
    loss = (normalizer - logits[rows, targets]).sum()
    if wanted:
        logits.sub_(normalizer.unsqueeze(1)).exp_()
        logits[rows, targets] -= 1.0
    return loss


def _accumulate(gradients: list[Tensor | None], part: slice, slopes: Tensor, hidden: Tensor, weight: Tensor) -> None:
    """Add the gradients of hidden states, weight and bias that follow from the gradient (k, V) of a piece's logits."""
    for_hidden, for_weight, for_bias = gradients
    if for_bias is not None:
        for_bias += slopes.sum(dim=0)
    cast = slopes.to(hidden.dtype)
    if for_hidden is not None:
        for_hidden[part] = cast @ weight
    if for_weight is not None and for_weight.dtype == cast.dtype:
        for_weight.addmm_(cast.T, hidden)
    elif for_weight is not None:
        for_weight += cast.T @ hidden
