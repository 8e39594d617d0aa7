"""Conversion of a language model in one GGUF file to an ordinary model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from medmvl.errors import require
from medmvl.pretrained import build_from_config, open_pretrained, translate_load_errors

#: Keys of a loaded model's config that refer to its GGUF file.
_TRACES = ("quantization_config", "_name_or_path")


def save_gguf_as_folder(file: Path, folder: Path) -> None:
    """Unpack quantized weights to float32 and save them with the tokenizer and its chat template.

    The saved config does not mention GGUF: transformers refuses to save a model that does, and loading the folder must not
    need the package `gguf`.

    Args:
        file: GGUF file of an architecture that transformers reads.
        folder: existing folder for config, safetensors and tokenizer.

    Raises:
        MissingExtraError: without the extra `gguf`.
        CheckpointError: if transformers cannot read the file.
    """
    require("gguf", "gguf")
    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with translate_load_errors(
        f"{file.name} cannot be read as a GGUF language model", "Give a GGUF file of a language model."
    ):
        tokenizer = open_pretrained(AutoTokenizer, file.parent, **source)
        model = _plain(open_pretrained(AutoModelForCausalLM, file.parent, **source))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain(loaded: PreTrainedModel) -> PreTrainedModel:
    """Return a model with the same weights whose config does not mention a quantization."""
    settings = {key: value for key, value in loaded.config.to_dict().items() if key not in _TRACES}
    model = build_from_config(AutoModelForCausalLM, type(loaded.config).from_dict(settings))
    model.load_state_dict({name: tensor.float() for name, tensor in loaded.state_dict().items()})
    model.generation_config = loaded.generation_config
    return model
