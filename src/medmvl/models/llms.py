"""What differs between LLM families and matters to us: the linear layers that LoRA adapts.

Chat templates and special tokens belong to the tokenizer and live in `medmvl.processing.templates`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class LLMFamily:
    """Facts of one family (`model_type` of transformers).

    Attributes:
        attention: names of the linear layers of an attention block.
        mlp: names of the linear layers of a feed-forward block.
    """

    attention: tuple[str, ...]
    mlp: tuple[str, ...]


_LLAMA = LLMFamily(("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj"))

#: model_type -> facts; names read off the modules of transformers 5.23.
LLM_FAMILIES: dict[str, LLMFamily] = {
    "llama": _LLAMA,  # Llama 2 and 3.x, SmolLM2
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi": LLMFamily(("q_proj", "k_proj", "v_proj", "dense"), ("fc1", "fc2")),
    "phi3": LLMFamily(("qkv_proj", "o_proj"), ("gate_up_proj", "down_proj")),
}


def lora_targets(language_model: nn.Module) -> list[str]:
    """Return the names of the LLM's linear layers that LoRA adapts by default: all but the head.

    For a family that is not in the table the names are read off the module.
    """
    family = LLM_FAMILIES.get(language_model.config.model_type)
    if family is not None:
        return [*family.attention, *family.mlp]
    head = language_model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    return sorted(linear)
