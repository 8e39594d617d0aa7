"""What differs between LLM families and matters to us, in one table: linear layers for LoRA, chat format, end of a turn.

Every other causal LM of transformers works too, with defaults, and a log line says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LLMFamily:
    """Facts of one family (`model_type` of transformers).

    Attributes:
        members: published models of this type.
        attention: names of the linear layers of an attention block.
        mlp: names of the linear layers of a feed-forward block.
        templates: chat templates its members were tuned with; the tokenizer's special tokens tell which.
        turn_ends: tokens that end an answer in these templates.
    """

    members: str
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    templates: tuple[str, ...]
    turn_ends: tuple[str, ...]


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATED = ("gate_proj", "up_proj", "down_proj")

#: model_type -> facts; names of layers read off the modules of transformers 5.23.
LLM_FAMILIES: dict[str, LLMFamily] = {
    "llama": LLMFamily(
        "Llama 2 and 3.x, SmolLM2, TinyLlama",
        _ATTENTION,
        _GATED,
        ("llama3-chat", "llama2-chat", "chatml", "smollm2-chat"),
        ("<|eot_id|>", "</s>", "<|im_end|>"),
    ),
    "qwen2": LLMFamily("Qwen2, Qwen2.5", _ATTENTION, _GATED, ("chatml", "qwen2.5-chat"), ("<|im_end|>",)),
    "qwen3": LLMFamily("Qwen3", _ATTENTION, _GATED, ("chatml",), ("<|im_end|>",)),
    "gemma3_text": LLMFamily("Gemma 3", _ATTENTION, _GATED, ("gemma-chat",), ("<end_of_turn>",)),
    "phi": LLMFamily(
        "Phi-1.5, Phi-2", ("q_proj", "k_proj", "v_proj", "dense"), ("fc1", "fc2"), ("phi2-qa",), ("<|endoftext|>",)
    ),
    "phi3": LLMFamily(
        "Phi-3, Phi-3.5, Phi-4", ("qkv_proj", "o_proj"), ("gate_up_proj", "down_proj"), ("phi3-chat",), ("<|end|>",)
    ),
    "smollm3": LLMFamily("SmolLM3", _ATTENTION, _GATED, ("chatml",), ("<|im_end|>",)),
    "mistral": LLMFamily("Mistral 7B", _ATTENTION, _GATED, ("llama2-chat",), ("</s>",)),
}


def lora_targets(language_model: PreTrainedModel) -> list[str]:
    """Return the names of the LLM's linear layers that LoRA adapts by default: all but the head.

    For a family that is not in the table the names are read off the module, and a log line says so.
    """
    kind = language_model.config.model_type
    family = LLM_FAMILIES.get(kind)
    if family is not None:
        return [*family.attention, *family.mlp]
    head = language_model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    found = sorted(linear)
    logger.warning("The LLM type %r is not in the table of families: LoRA adapts %s.", kind, ", ".join(found))
    return found
