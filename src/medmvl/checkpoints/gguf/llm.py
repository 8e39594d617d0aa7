"""Metadata and tensors of an LLM under llama.cpp's names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from medmvl.errors import CheckpointError, did_you_mean, require

#: model_type -> architecture of llama.cpp.
ARCHITECTURES = {
    "llama": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
    "phi": "PHI2",
    "phi3": "PHI3",
    "gemma3_text": "GEMMA3",
}

#: llama.cpp takes a Gemma 3 with this many layers for the 27B model, whose attention scale is not that of the head size.
_LAYERS_OF_GEMMA_27B = 62


def architecture(config: PreTrainedConfig) -> Any:
    """Return gguf's architecture for an LLM.

    Raises:
        CheckpointError: if this export does not support it.
    """
    gguf = require("gguf", "gguf")
    if config.model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"The LLM {config.model_type!r} cannot be written as GGUF. {did_you_mean(config.model_type, ARCHITECTURES)}"
        )
    return gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]


def add_hyperparameters(writer: Any, config: PreTrainedConfig) -> None:
    """Write the hyperparameters that llama.cpp needs to build the LLM.

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
    if config.model_type == "gemma3_text":
        _add_gemma3(writer, config)


def _add_gemma3(writer: Any, config: PreTrainedConfig) -> None:
    """Write the hyperparameters of Gemma 3: every sixth layer attends to all tokens, the others to a window.

    Raises:
        CheckpointError: for settings that llama.cpp's graph does not have.
    """
    period = 6  # a reader that does not know the key of the pattern assumes this one
    usual = [
        "full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(config.num_hidden_layers)
    ]
    width = config.hidden_size // config.num_attention_heads
    scaled_by = width if config.num_hidden_layers == _LAYERS_OF_GEMMA_27B else config.head_dim
    local = config.rope_parameters["sliding_attention"]
    problems = {
        f"its layers are not five with a window, then one without ({config.layer_types})": config.layer_types != usual,
        f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, not {scaled_by}": config.query_pre_attn_scalar
        != scaled_by,
        f"hidden_activation is {config.hidden_activation}": config.hidden_activation != "gelu_pytorch_tanh",
        "it caps its logits": bool(config.final_logit_softcapping or config.attn_logit_softcapping),
        "it attends in both directions": bool(config.use_bidirectional_attention),
        f"its windowed layers scale their rotary embeddings ({local})": local.get("rope_type", "default") != "default",
    }
    if found := [text for text, wrong in problems.items() if wrong]:
        raise CheckpointError(f"llama.cpp's Gemma 3 cannot express this LLM: {'; '.join(found)}.")
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base_swa(float(local["rope_theta"]))
    gguf = require("gguf", "gguf")
    if (scaling := rope(config)).get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))


def rope(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the checked rotary settings; of Gemma 3, those of the layers with full attention."""
    settings = dict(config.rope_parameters or {})
    settings = dict(settings.get("full_attention", settings))
    kind = settings.get("rope_type", "default")
    known = ("default", "linear" if config.model_type == "gemma3_text" else "llama3")
    if kind not in known:
        raise CheckpointError(
            f"The LLM scales its rotary embeddings by {kind!r}; this export knows none and {known[1]!r}."
        )
    return settings


def llm_tensors(config: PreTrainedConfig, state: dict[str, Tensor], *, tied: bool) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (our name, llama.cpp's name, values) of each tensor, values of any shape as `to_stored` returns them.

    Args:
        state: the LLM's own state dict.
        tied: whether the head has the weights of the embedding table and is left out.

    Raises:
        CheckpointError: for a tensor that llama.cpp has no place for.
    """
    gguf = require("gguf", "gguf")
    names = gguf.get_tensor_name_map(architecture(config), config.num_hidden_layers)
    for name, tensor in state.items():
        if name == "lm_head.weight" and tied:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise CheckpointError(f"llama.cpp has no place for the tensor {name} of a {config.model_type}.")
        yield name, target, to_stored(config, name, tensor)
    if rope(config).get("rope_type") == "llama3":
        yield "(computed)", "rope_freqs.weight", _llama3_factors(config)


def to_stored(config: PreTrainedConfig, name: str, tensor: Tensor, *, back: bool = False) -> Tensor:
    """Return a weight of any shape as llama.cpp stores it; `back` reverses this.

    Rows of Llama's query and key matrices change their order. Gemma's norms multiply by 1 + weight, and that sum is stored.
    """
    if config.model_type == "gemma3_text" and name.endswith("norm.weight"):
        return tensor.float() - 1 if back else tensor.float() + 1
    return to_rotary_order(config, name, tensor, back=back)


def to_rotary_order(config: PreTrainedConfig, name: str, tensor: Tensor, *, back: bool = False) -> Tensor:
    """Reorder the rows of Llama's query and key matrices (rows, width): halves (transformers) to neighboring pairs (llama.cpp)."""
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
