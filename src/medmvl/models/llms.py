"""Families of LLMs: linear layers for LoRA, chat formats, and which of them cannot be used.

A causal LM of transformers that is not in the table is used with defaults, and a log line reports it. `docs/extending.md` lists
which ones were tried.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass

import transformers
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from medmvl.errors import ModelError
from medmvl.models.compatibility import CACHE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LLMFamily:
    """Layers and chat formats of one family (`model_type` of transformers).

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

#: model_type -> family; names of layers read off the modules of transformers 5.23.
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


#: Causal LMs whose config says is_decoder false.
_CAUSAL_ALL_THE_SAME = ("gpt_neox", "gpt_neox_japanese")

#: model_type -> why it cannot be an LLM here, found by `benchmarks/llm_families.py`.
REFUSED: dict[str, str] = {
    "falcon_h1": "saved and loaded it gives other logits",
    "gemma4_text": "it needs the token ids of every position, and visual embeddings have none",
    "minimax": "its cache is of a class of its own, which generation here does not make",
    "recurrent_gemma": "it keeps a state of its own kind, which generation here does not carry",
}


def check_llm(config: PreTrainedConfig) -> None:
    """Raise if an LLM of this config cannot work here.

    Raises:
        ModelError: with the reason, for a config without a causal LM, an encoder-decoder, a model that reads text in both
            directions, or one that keeps a state instead of keys and values.
    """
    kind = config.model_type
    causal_lm = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    arguments = inspect.signature(causal_lm.forward).parameters if causal_lm is not None else {}
    if causal_lm is None:
        reason = f"transformers {transformers.__version__} has no causal LM of this type"
    elif getattr(config, "is_encoder_decoder", False):
        reason = "it is made of an encoder and a decoder"
    elif getattr(config, "is_decoder", None) is False and kind not in _CAUSAL_ALL_THE_SAME:
        reason = "it reads text in both directions, so it would see the answer (its config has is_decoder false)"
    elif "inputs_embeds" not in arguments:
        reason = "it takes token ids only, and visual embeddings have to stand among them"
    elif CACHE not in arguments:
        reason = "it keeps a state of its own kind instead of keys and values, which generation here does not carry"
    elif kind in REFUSED:
        reason = REFUSED[kind]
    else:
        return
    raise ModelError(
        f"The LLM {kind!r} cannot be used: {reason}. Choose another; docs/extending.md lists families that were tried."
    )


def lora_targets(language_model: PreTrainedModel) -> list[str]:
    """Return the names of the LLM's linear layers that LoRA adapts by default: all but the head.

    For a family that is not in the table the names are read from the module, and a log line reports them.
    """
    kind = language_model.config.model_type
    family = LLM_FAMILIES.get(kind)
    if family is not None:
        return [*family.attention, *family.mlp]
    head = language_model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head  # GPT-2's linear layers are Conv1D
    }
    found = sorted(linear)
    logger.warning("The LLM type %r is not in the table of families: LoRA adapts %s.", kind, ", ".join(found))
    return found
