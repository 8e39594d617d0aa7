"""Reading of configs, tokenizers and processors of the parts that a checkpoint was built from."""

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
from medmvl.pretrained import check_folder, first_line, open_pretrained, translate_load_errors
from medmvl.processing import ImageProcessor, Normalization

#: Keys of a config that record its origin and do not describe the model.
PROVENANCE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "auto_map")


def llm_config(source: Path | dict[str, Any]) -> PreTrainedConfig:
    """Return an LLM's config as a class of transformers.

    Args:
        source: the LLM's folder, or its settings.

    Raises:
        CheckpointError: if transformers does not know the model type (remote code is never run) or the file is broken.
    """
    try:
        if isinstance(source, Path):
            check_folder(source)
            config = _read_config(source)
        else:
            settings = {key: value for key, value in source.items() if key not in PROVENANCE}
            config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises whatever a wrong setting makes it raise
        where = source if isinstance(source, Path) else source.get("model_type", "a config without model_type")
        raise CheckpointError(
            f"The LLM {where} is none that transformers knows by itself: {first_line(error)} "
            "Code that comes with a checkpoint is never run."
        ) from error
    config = getattr(config, "text_config", None) or config
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        where = source if isinstance(source, Path) else "the checkpoint's config"
        raise CheckpointError(
            f"{where} describes a {config.model_type!r}, which is no language model. Was a name resolved to another part?"
        )
    return config


def _read_config(folder: Path) -> PreTrainedConfig:
    """Return a folder's config; the rotary scaling "su" of Phi-3 folders of 2024 becomes "longrope", its present name."""
    settings, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
    scaling = settings.get("rope_scaling") or {}
    if settings.get("model_type") != "phi3" or scaling.get("type") != "su":
        return open_pretrained(AutoConfig, folder, local_files_only=True)
    original = settings.get("original_max_position_embeddings")
    renamed = {**scaling, "type": "longrope", "original_max_position_embeddings": original}
    kept = {key: value for key, value in settings.items() if key not in PROVENANCE}
    return Phi3Config(**{**kept, "rope_scaling": renamed})


def plain_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a config as a dictionary without the keys that record its origin."""
    return {key: value for key, value in config.to_dict().items() if key not in PROVENANCE}


def load_tokenizer(folder: Path, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder.

    Args:
        config: the LLM's config, which selects the tokenizer's class; default: the one in the folder.

    Raises:
        CheckpointError: if files are missing or damaged, or need remote code.
    """
    advice = "The folder needs tokenizer.json, or vocab.json and merges.txt, and tokenizer_config.json."
    with translate_load_errors(f"The tokenizer in {folder} cannot be loaded", advice):
        return open_pretrained(AutoTokenizer, folder, config=config, local_files_only=True)


def load_image_processor(folder: Path) -> ImageProcessor:
    """Return the image processor of an encoder's folder.

    Raises:
        CheckpointError: if it has none.
    """
    advice = "The folder needs preprocessor_config.json."
    with translate_load_errors(f"The image processor in {folder} cannot be loaded", advice):
        return ImageProcessor.from_pretrained(str(folder))


def slice_normalization(processor: ImageProcessor) -> Normalization:
    """Return the rescaling and normalization that a 2D image processor applies to a slice of the right size."""
    settings = processor.settings
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    if not settings.get("do_normalize", True):
        return Normalization(scale=scale)
    mean, std = (_one_or_all(settings[key]) for key in ("image_mean", "image_std"))
    return Normalization(scale=scale, mean=mean, std=std)


def _one_or_all(values: Any) -> float | tuple[float, ...]:
    if isinstance(values, int | float):
        return float(values)
    return float(values[0]) if len(set(values)) == 1 else tuple(map(float, values))
