"""A language model in one GGUF file becomes an ordinary model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from medmvl.errors import CheckpointError, require

#: Entries of a loaded model's config that speak of the GGUF file it came from.
_TRACES = ("quantization_config", "_name_or_path")


def save_gguf_as_folder(file: Path, folder: Path) -> None:
    """Unpack quantised weights to float32 and save them with the tokenizer and its chat template.

    The saved model is an unquantised one: transformers refuses to save a model that still says it is a GGUF, and whoever
    loads the folder must not need `gguf`.

    Args:
        file: a GGUF of an architecture that transformers reads.
        folder: exists; gets config, safetensors and tokenizer.

    Raises:
        MissingExtraError: without the extra `gguf`.
        CheckpointError: if transformers cannot read the file.
    """
    require("gguf", "gguf")
    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
        model = _plain(AutoModelForCausalLM.from_pretrained(file.parent, **source))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"{file.name} cannot be read as a GGUF language model: {str(error).splitlines()[0]}"
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain(loaded: PreTrainedModel) -> PreTrainedModel:
    """Return a model of the same weights whose config and class know nothing of a quantisation."""
    settings = {key: value for key, value in loaded.config.to_dict().items() if key not in _TRACES}
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings))
    model.load_state_dict({name: tensor.float() for name, tensor in loaded.state_dict().items()})
    model.generation_config = loaded.generation_config
    return model
