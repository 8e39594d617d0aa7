"""The LLM as llama.cpp keeps it: its numbers as metadata, its tensors under llama.cpp's names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from medmvl.errors import CheckpointError, did_you_mean, require

#: model_type -> architecture of llama.cpp.
ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "phi": "PHI2", "phi3": "PHI3"}


def architecture(config: PreTrainedConfig) -> Any:
    """Return gguf's architecture for an LLM.

    Raises:
        CheckpointError: if this export does not know it.
    """
    gguf = require("gguf", "gguf")
    if config.model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"The LLM {config.model_type!r} cannot be written as GGUF. {did_you_mean(config.model_type, ARCHITECTURES)}"
        )
    return gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]


def add_hyperparameters(writer: Any, config: PreTrainedConfig) -> None:
    """Write the numbers that llama.cpp needs to build the LLM.

    Raises:
        CheckpointError: for a rotary scaling that this export does not know.
    """
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rotary = rope(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_rope_freq_base(float(rotary["rope_theta"]))
    writer.add_rope_dimension_count(int(width * float(rotary.get("partial_rotary_factor") or 1.0)))
    if width != config.hidden_size // heads:
        writer.add_key_length(width)
        writer.add_value_length(width)
    if config.model_type == "phi":
        writer.add_layer_norm_eps(config.layer_norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_sliding_window(config.sliding_window or config.max_position_embeddings)


def rope(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the rotary settings, checked."""
    settings = dict(config.rope_parameters or {})
    kind = settings.get("rope_type", "default")
    if kind not in ("default", "llama3"):
        raise CheckpointError(f"The LLM scales its rotary embeddings by {kind!r}; this export knows none and 'llama3'.")
    return settings


def llm_tensors(config: PreTrainedConfig, state: dict[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (our name, llama.cpp's name, values); Llama's query and key rows come in llama.cpp's rotary order.

    Args:
        state: the LLM's own state dict.

    Raises:
        CheckpointError: for a tensor that llama.cpp has no place for.
    """
    gguf = require("gguf", "gguf")
    names = gguf.get_tensor_name_map(architecture(config), config.num_hidden_layers)
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise CheckpointError(f"llama.cpp has no place for the tensor {name} of a {config.model_type}.")
        yield name, target, to_rotary_order(config, name, tensor)
    if rope(config).get("rope_type") == "llama3":
        yield "(computed)", "rope_freqs.weight", _llama3_factors(config)


def to_rotary_order(config: PreTrainedConfig, name: str, tensor: Tensor, *, back: bool = False) -> Tensor:
    """Reorder the rows of Llama's query and key matrices: halves (transformers) to neighbouring pairs (llama.cpp)."""
    if config.model_type != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    inner = (heads, -1, 2) if back else (heads, 2, -1)
    return tensor.unflatten(0, inner).transpose(1, 2).reshape(tensor.shape)


def _llama3_factors(config: PreTrainedConfig) -> Tensor:
    """Return the divisors of the rotary frequencies (Llama 3.1's scaling, as in transformers' `llama3` rope type)."""
    settings = rope(config)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = float(settings["rope_theta"]) ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    low, high = float(settings["low_freq_factor"]), float(settings["high_freq_factor"])
    length, factor = float(settings["original_max_position_embeddings"]), float(settings["factor"])
    waves = length * frequencies / (2 * math.pi)  # how many waves fit into the original context
    smooth = ((waves - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()
