"""What vLLM cannot do with a checkpoint, found before it loads the weights."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from transformers import GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from medmvl.errors import CheckpointError
from medmvl.models import MedMVLConfig
from medmvl.processing import MedMVLProcessor

#: Settings of a generation config that change answers and that vLLM ignores or understands in another way.
_RULES = ("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
          "min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "sequence_bias", "guidance_scale",
          "exponential_decay_length_penalty", "encoder_repetition_penalty", "watermarking_config")  # fmt: skip


def llm_architecture(text_config: Any, known: Collection[str]) -> str:
    """Return the class name of an LLM in vLLM's registry.

    Args:
        text_config: config of the LLM.
        known: the names in the registry.

    Raises:
        CheckpointError: if vLLM has no such LLM.
    """
    names = text_config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text_config.model_type)]
    if names[0] not in known:
        raise CheckpointError(
            f"vLLM has no LLM of the class {names[0]} (model_type {text_config.model_type!r}). Use `medmvl serve`."
        )
    return str(names[0])


def check_model(config: MedMVLConfig, known: Collection[str], head_size: int, sizes: Collection[int] | None) -> None:
    """Raise if vLLM cannot run a model.

    Args:
        config: of the checkpoint.
        known: class names in vLLM's registry.
        head_size: of the LLM's attention.
        sizes: head sizes that the attention takes; None if vLLM finds out when it starts.

    Raises:
        CheckpointError: with the reason.
    """
    llm_architecture(config.text_config, known)
    if sizes is not None and head_size not in sizes:
        raise CheckpointError(
            f"The LLM's attention heads have size {head_size}, and vLLM's CPU build takes {', '.join(map(str, sorted(sizes)))}. "
            "Use `medmvl serve`."
        )


def check_answer_end(processor: MedMVLProcessor, config: GenerationConfig) -> list[str]:
    """Return remarks about answers that would differ from the Predictor's.

    Args:
        processor: of the checkpoint.
        config: its generation_config.json, by which vLLM ends answers.

    Raises:
        CheckpointError: if the file lacks a token that ends answers.
    """
    given = config.eos_token_id
    stored = set(given if isinstance(given, list) else [given])
    missing = [token for token in processor.end_token_ids(config) if token not in stored]
    if missing:
        raise CheckpointError(
            f"generation_config.json lacks the token ids {missing}, with which this model ends answers. Write it again: "
            "MedMVLProcessor.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )
    notes = []
    if (text := processor.turn_end_text) is not None:
        notes.append(f"The model ends answers with the text {text!r}; send it as a stop string with each request.")
    if rules := [name for name in _RULES if getattr(config, name, None) not in (None, 0, 1.0, [])]:
        notes.append(f"vLLM does not follow {', '.join(rules)} of generation_config.json as `medmvl serve` does.")
    return notes
