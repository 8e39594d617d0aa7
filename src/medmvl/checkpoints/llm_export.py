"""Export of the LLM alone, for an engine that `medmvl serve --backend` sends embedded prompts to."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from medmvl.checkpoints.vllm_cpu import vllm_cpu_note
from medmvl.errors import CheckpointError
from medmvl.files import PathLike, atomic_directory, check_new_folder
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.pretrained import open_pretrained
from medmvl.processing import MedMVLProcessor


def export_llm(source: PathLike, target: PathLike) -> list[str]:
    """Write the LLM and the tokenizer of a checkpoint as a folder of transformers; returns remarks.

    Raises:
        CheckpointError: if the written folder gives other logits; nothing appears then.
    """
    check_new_folder(target)
    model = MedMVLForConditionalGeneration.from_pretrained(Path(source), dtype="auto")
    processor = MedMVLProcessor.from_pretrained(str(source))
    processor.configure_generation(model.generation_config)
    llm = model.language_model
    llm.generation_config = model.generation_config
    with atomic_directory(Path(target)) as folder:
        llm.save_pretrained(folder)
        processor.tokenizer.save_pretrained(folder)
        written = open_pretrained(AutoModelForCausalLM, folder, dtype="auto")
        if not torch.equal(_logits(llm), _logits(written)):
            raise CheckpointError(
                f"The LLM written from {source} gives other logits. Report this, with its config.json."
            )
    note = vllm_cpu_note(model.config.text_config)
    return [note] if note else []


@torch.no_grad()
def _logits(llm: PreTrainedModel) -> Tensor:
    """Return the logits (1, T, V) of a few token ids."""
    logits: Tensor = llm.eval()(input_ids=torch.arange(8)[None] % llm.config.vocab_size).logits
    return logits
