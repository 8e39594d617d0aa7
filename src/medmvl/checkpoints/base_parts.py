"""Configs, tokenizers and processors of the parts a checkpoint was built from; never their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from medmvl.errors import CheckpointError
from medmvl.processing import ImageProcessor, Normalisation

#: Where a config came from and when; no part of what the model is.
PROVENANCE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "auto_map")


def llm_config(source: Path | dict[str, Any]) -> PreTrainedConfig:
    """Return an LLM's config, native to transformers.

    Args:
        source: the LLM's folder, or the settings themselves.

    Raises:
        CheckpointError: if transformers does not know the model type (remote code is never run) or the file is broken.
    """
    try:
        if isinstance(source, Path):
            config = _from_folder(source)
        else:
            settings = {key: value for key, value in source.items() if key not in PROVENANCE}
            config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    except (OSError, ValueError, KeyError) as error:
        where = source if isinstance(source, Path) else source.get("model_type", "a config without model_type")
        raise CheckpointError(
            f"The LLM {where} is none that transformers knows by itself: {str(error).splitlines()[0]} "
            "Code that comes with a checkpoint is never run."
        ) from error
    config = getattr(config, "text_config", None) or config
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        where = source if isinstance(source, Path) else "the checkpoint's config"
        raise CheckpointError(
            f"{where} describes a {config.model_type!r}, which is no language model. Was a name resolved to another part?"
        )
    return config


def _from_folder(folder: Path) -> PreTrainedConfig:
    """Return a folder's config; Phi-3's "su" scaling, as the folders of 2024 spell it, is today's "longrope"."""
    settings, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
    scaling = settings.get("rope_scaling") or {}
    if settings.get("model_type") != "phi3" or scaling.get("type") != "su":
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    original = settings.get("original_max_position_embeddings")
    renamed = {**scaling, "type": "longrope", "original_max_position_embeddings": original}
    kept = {key: value for key, value in settings.items() if key not in PROVENANCE}
    return Phi3Config(**{**kept, "rope_scaling": renamed})


def plain_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a config as a dictionary, without its provenance."""
    return {key: value for key, value in config.to_dict().items() if key not in PROVENANCE}


def load_tokenizer(folder: Path, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder.

    Args:
        config: the LLM's, by which its class is found; default: the one in the folder.

    Raises:
        CheckpointError: if its files are missing or need code of their own.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises whatever the missing file or package makes it raise
        raise CheckpointError(
            f"The tokenizer in {folder} cannot be loaded: {_first_line(error)} The folder needs tokenizer.json, or "
            "vocab.json and merges.txt, and tokenizer_config.json."
        ) from error


def load_image_processor(folder: Path) -> ImageProcessor:
    """Return the image processor of an encoder's folder.

    Raises:
        CheckpointError: if it has none.
    """
    try:
        return ImageProcessor.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"The image processor in {folder} cannot be loaded: {_first_line(error)} The folder needs preprocessor_config.json."
        ) from error


def slice_normalisation(processor: ImageProcessor) -> Normalisation:
    """Return what a 2D image processor does to a slice that already has the right size: rescale and normalise."""
    settings = processor.settings
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    if not settings.get("do_normalize", True):
        return Normalisation(scale=scale)
    mean, std = (_one_or_all(settings[key]) for key in ("image_mean", "image_std"))
    return Normalisation(scale=scale, mean=mean, std=std)


def _one_or_all(values: Any) -> float | tuple[float, ...]:
    if isinstance(values, int | float):
        return float(values)
    return float(values[0]) if len(set(values)) == 1 else tuple(map(float, values))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
