"""Attention within the samples of a packed row.

A packed row needs positions that restart with each sample (`medmvl.training.acceleration.packing`) and attention that stays
within a sample. This module registers such an attention function with transformers. On CUDA in half precision without dropout
it calls torch's variable-length flash attention once for the whole row; elsewhere it attends segment by segment. It makes no
mask of the size of the row squared. Attention with soft caps or sinks is computed by the family's own eager function, segment
by segment.

Restarting positions are not enough: with a key-value cache, transformers attends causally over the whole row.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from medmvl.errors import ModelError
from medmvl.training.acceleration.cpu import HALF

#: Name under which transformers finds `packed_attention`. It has no mask function on purpose: transformers then
#: builds no mask.
PACKED = "medmvl_packed"

#: Arguments of a layer that do not change what attention computes, or that the function takes itself.
_IRRELEVANT = {
    "cache_position",
    "is_causal",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}

#: Windows of the calls within `recorded_calls`.
_CALLS: list[int | None] | None = None


@torch.compiler.disable  # its loop depends on the segments of one batch, which do not repeat
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
        segments: lengths that sum up to T; None: an ordinary row, for which transformers' own function is called.
        sliding_window: number of tokens that a token attends to, itself included.
        kwargs: arguments of other kinds of attention (soft caps, sinks) go to the eager function of the model's module.

    Returns:
        (1, T, heads, head width), and None for the weights.

    Raises:
        ModelError: for an argument that may change the result and is supported neither here nor by an eager function.
    """
    if _CALLS is not None and segments is not None:
        _CALLS.append(sliding_window)
    if others := _refuse_unknown(module, kwargs, attention_mask, segments):
        return _eager_by_segment(module, (query, key, value), others, segments, dropout, scaling, sliding_window), None
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


def _refuse_unknown(
    module: nn.Module, arguments: dict[str, Any], mask: Tensor | None, segments: Sequence[int] | None
) -> dict[str, Any]:
    """Return the attention arguments that only the model's own eager function knows.

    Raises:
        ModelError: if an argument would be ignored, naming it.
    """
    others = {name: value for name, value in arguments.items() if value is not None and name not in _IRRELEVANT}
    given = [] if others and _eager_function(module) is not None else list(others)
    if segments is not None or others:
        given += ["is_causal=False"] * (arguments.get("is_causal") is False)
        given += ["attention_mask"] * (mask is not None)
    if given:
        raise ModelError(f"attention within packed rows does not support: {', '.join(given)}")
    return others


def _eager_function(module: nn.Module) -> Callable[..., Any] | None:
    """Return the eager attention function that the model's family defines next to its layers; None if it has none."""
    found: Callable[..., Any] | None = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return found


def _eager_by_segment(
    module: nn.Module,
    states: tuple[Tensor, Tensor, Tensor],
    others: dict[str, Any],
    segments: Sequence[int] | None,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Return the output (1, T, heads, head width) of the family's eager function, called for each segment."""
    eager = _eager_function(module)
    assert eager is not None
    attended = []
    for q, k, v in zip(*(state.split(list(segments or [state.shape[2]]), dim=2) for state in states), strict=True):
        if q.shape[2] != k.shape[2]:
            raise ModelError("attention within packed rows does not support a key-value cache")
        allowed = _window_mask(q.shape[2], window, q.device)
        if allowed is None:
            allowed = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, torch.finfo(q.dtype).min)
        attended.append(eager(module, q, k, v, mask[None, None], dropout=dropout, scaling=scaling, **others)[0])
    return torch.cat(attended, dim=1)


@contextmanager
def recorded_calls() -> Iterator[list[int | None]]:
    """Context that gives the list of sliding windows of all calls for packed rows within it."""
    global _CALLS
    calls: list[int | None] = []
    _CALLS = calls
    try:
        yield calls
    finally:
        _CALLS = None


def _flash(query: Tensor) -> bool:
    """Whether torch's variable-length flash attention takes such a query: on CUDA, in half precision."""
    return query.is_cuda and query.dtype in HALF and query.shape[-1] <= 256 and _varlen_attention() is not None


@lru_cache(maxsize=1)
def _varlen_attention() -> Any:
    """Return torch's function; None if this torch lacks it or its grouped queries."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "enable_gqa" in inspect.signature(varlen_attn).parameters else None


def _one_kernel(
    query: Tensor, key: Tensor, value: Tensor, segments: Sequence[int], scaling: float | None, window: int | None
) -> Tensor:
    """Return the output (1, T, heads, head width) of one call for the whole row; arguments as for `packed_attention`."""
    begins, longest = _begins(tuple(segments), query.device), max(segments)
    q, k, v = (states[0].transpose(0, 1).to(query.dtype) for states in (query, key, value))
    # Tokens to the left and right of a token that it attends to; -1 is no limit.
    reach = (-1 if window is None else window - 1, 0)
    grouped = query.shape[1] != key.shape[1]
    attended = _varlen_attention()(
        q, k, v, begins, begins, longest, longest, scale=scaling, window_size=reach, enable_gqa=grouped
    )
    return attended.unsqueeze(0)


@lru_cache(maxsize=4)
def _begins(segments: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the starts of n segments and the end of the last, (n + 1,) int32; cached, since every layer needs them."""
    return torch.tensor([0, *segments], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return the (length, length) bool mask of sliding-window attention; None if plain causal attention is the same."""
    if window is None or length <= window:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)


AttentionInterface.register(PACKED, packed_attention)


@contextmanager
def attention(language_model: PreTrainedModel, implementation: str | None) -> Iterator[None]:
    """Context in which an LLM uses another attention function; None changes nothing."""
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
    """Whether the attention function of an LLM can be chosen."""
    return bool(getattr(language_model, "_supports_attention_backend", False))
