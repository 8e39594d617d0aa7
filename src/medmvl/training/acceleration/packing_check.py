"""Measured choice of what keeps the samples of a packed row apart in an LLM.

Layers without attention (convolution, state space, linear attention) mix neighboring samples, and some families do not hand
the segments, or the restarting positions, to their attention. So two short texts run through the LLM in one row and apart. The
first way whose logits are equal up to rounding is taken: our attention function, then transformers' own masks with the model's
own attention. If both differ, rows are padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from medmvl.errors import ModelError
from medmvl.training.acceleration.attention import PACKED, attention, recorded_calls, supports_packing
from medmvl.training.acceleration.exactness import LENGTHS, in_fp32, row_logits, short_sample, too_different
from medmvl.training.acceleration.packing import Packing, pack
from medmvl.training.engine.modes import evaluating

#: Kinds of layers whose attention stays within a segment of a packed row.
_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
#: Settings of attention that chooses among all tokens of a row, which shows only in rows longer than the measured ones.
_CHOICES = ("keep_window_size", "index_topk", "attention_chunk_size")
#: A sliding window shorter than the measured texts.
_SHORT_WINDOW = 3


def choose_packing(llm: PreTrainedModel) -> tuple[Packing | None, str | None]:
    """Return what keeps samples apart and None, or None and why rows must be padded.

    Args:
        llm: a causal LM with its weights, on any device.
    """
    if (kernel := why_not_packed(llm)) is None:
        return Packing.KERNEL, None
    if (masks := why_not_by_masks(llm)) is None:
        return Packing.MASKS, None
    return None, kernel if kernel == masks else f"{kernel}; with transformers' own masks {masks}"


def why_not_packed(llm: PreTrainedModel) -> str | None:
    """Return why our attention function must not be used; None if packed rows give the logits of separate ones."""
    if not supports_packing(llm):
        return "its attention function cannot be chosen"
    if reason := _other_layers(llm):
        return reason
    samples, batch = _texts(llm)
    with evaluating(llm), in_fp32(llm):
        with attention(llm, PACKED), recorded_calls() as calls:
            try:
                packed = row_logits(
                    llm, batch["input_ids"], position_ids=batch["position_ids"], segments=batch["segments"]
                )
            except ModelError as error:
                return str(error)
        if len(calls) != llm.config.num_hidden_layers:
            return f"only {len(calls)} of its {llm.config.num_hidden_layers} layers attend within the segments of a row"
        if calls != (windows := _windows(llm)):
            return f"its layers pass the sliding windows {_listed(calls)} to their attention, and its config says {_listed(windows)}"
        return too_different("logits", packed, _apart(llm, samples), llm.dtype)


def why_not_by_masks(llm: PreTrainedModel) -> str | None:
    """Return why restarting positions must not be used with the LLM's own attention; None if they give the logits of separate rows."""
    if reason := _other_layers(llm):
        return reason
    if chosen := [name for name in _CHOICES if getattr(llm.config, name, None) is not None]:
        return f"its attention chooses among the tokens of a row ({', '.join(chosen)})"
    samples, batch = _texts(llm)
    with evaluating(llm), in_fp32(llm):
        for window in (None, _SHORT_WINDOW):
            with _shorter_window(llm, window):
                try:
                    packed = row_logits(llm, batch["input_ids"], position_ids=batch["position_ids"])
                except (TypeError, ValueError, RuntimeError) as error:
                    return f"it does not take positions ({str(error).splitlines()[0]})"
                if reason := too_different("logits", packed, _apart(llm, samples), llm.dtype):
                    return reason
    return None


def _other_layers(llm: PreTrainedModel) -> str | None:
    if other := sorted(set(getattr(llm.config, "layer_types", None) or ()) - _ATTENTION_LAYERS):
        return f"it has layers of the kind {', '.join(other)}"
    return None


def _texts(llm: PreTrainedModel) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """Return the short texts and the row of them."""
    samples = [short_sample(llm, number) for number in range(len(LENGTHS))]
    return samples, pack(samples)


def _apart(llm: PreTrainedModel, samples: Sequence[dict[str, Tensor]]) -> Tensor:
    """Return the logits (1, T, V) of separate rows, concatenated."""
    return torch.cat([row_logits(llm, sample["input_ids"].unsqueeze(0)) for sample in samples], dim=1)


@contextmanager
def _shorter_window(llm: PreTrainedModel, window: int | None) -> Iterator[None]:
    """Context in which transformers' masks have another sliding window, if the LLM has one; None changes nothing."""
    stored = getattr(llm.config, "sliding_window", None)
    if window is None or stored is None:
        yield
        return
    llm.config.sliding_window = window
    try:
        yield
    finally:
        llm.config.sliding_window = stored


def _windows(llm: PreTrainedModel) -> list[int | None]:
    """Return the sliding window of every layer by the config, None for a layer that attends to all tokens.

    A window longer than the measured texts does not change their logits, so the windows themselves are compared.
    """
    config = llm.config
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _listed(windows: Sequence[int | None]) -> str:
    return ", ".join("none" if window is None else str(window) for window in dict.fromkeys(windows))
