"""Attention within the samples of a packed row.

A packed row needs two things: positions that begin anew with each sample (`medmvl.training.packing`), and attention that
stays within a sample. The second is an attention function of our own, registered with transformers: on CUDA in half
precision, without dropout, torch's variable-length flash attention, one kernel for the whole row; elsewhere segment by
segment. No mask of the size of the row squared is ever made. Loss and gradients equal those of padded rows (tested to 1e-5).

A trap this avoids: with reset positions alone and an LLM that is left to build its key-value cache, transformers
attends causally over the whole row, without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from medmvl.training.cpu import HALF

#: Name under which transformers finds `packed_attention`. It has no mask function on purpose: transformers then
#: builds no mask.
PACKED = "medmvl_packed"


@torch.compiler.disable  # its loop and kernels are made for the segments of one batch, which never come again
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment of a row.

    Args:
        query: (1, heads, T, head width); `key` and `value` may have fewer heads (grouped-query attention).
        segments: lengths that sum up to T; None: an ordinary row, handed to transformers' own function.
        sliding_window: a token sees itself and at most so many minus one before it.

    Returns:
        (1, T, heads, head width), and None for the weights.
    """
    if segments is None:
        kwargs.setdefault("is_causal", attention_mask is None and query.shape[2] > 1)
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if not dropout and _flash(query):
        return _one_kernel(query, key, value, segments, scaling, sliding_window), None
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    pieces = zip(*(states.split(list(segments), dim=2) for states in (query, key, value)), strict=True)
    attended = []
    for q, k, v in pieces:
        mask = _window_mask(q.shape[2], sliding_window, q.device)
        attended.append(
            functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
            )
        )
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


def _flash(query: Tensor) -> bool:
    """Say whether torch's variable-length flash attention takes such a query: on CUDA, in half precision."""
    return query.is_cuda and query.dtype in HALF and query.shape[-1] <= 256 and _varlen_attention() is not None


@lru_cache(maxsize=1)
def _varlen_attention() -> Any:
    """Return torch's function; None where torch is too old for it or for grouped queries in it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "enable_gqa" in inspect.signature(varlen_attn).parameters else None


def _one_kernel(
    query: Tensor, key: Tensor, value: Tensor, segments: Sequence[int], scaling: float | None, window: int | None
) -> Tensor:
    """Return (1, T, heads, head width) of one call for the whole row; arguments as of `packed_attention`."""
    begins, longest = _begins(tuple(segments), query.device), max(segments)
    q, k, v = (states[0].transpose(0, 1).to(query.dtype) for states in (query, key, value))
    # (left, right) of what a token sees beside itself; -1 is no limit.
    reach = (-1 if window is None else window - 1, 0)
    grouped = query.shape[1] != key.shape[1]
    attended = _varlen_attention()(
        q, k, v, begins, begins, longest, longest, scale=scaling, window_size=reach, enable_gqa=grouped
    )
    return attended.unsqueeze(0)


@lru_cache(maxsize=4)
def _begins(segments: tuple[int, ...], device: torch.device) -> Tensor:
    """Return where each segment begins and the last one ends, (n + 1,) int32; kept, since every layer asks for it."""
    return torch.tensor([0, *segments], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return the (length, length) bool mask of sliding-window attention; None where plain causal is the same."""
    if window is None or length <= window:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)


AttentionInterface.register(PACKED, packed_attention)


@contextmanager
def attention(language_model: PreTrainedModel, implementation: str | None) -> Iterator[None]:
    """Let an LLM use another attention function for a while; None changes nothing."""
    if implementation is None:
        yield
        return
    before = language_model.config._attn_implementation
    language_model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        language_model.set_attn_implementation(before)


def supports_packing(language_model: nn.Module) -> bool:
    """Say whether an LLM lets its attention function be chosen, as all newer ones of transformers do."""
    return bool(getattr(language_model, "_supports_attention_backend", False))
