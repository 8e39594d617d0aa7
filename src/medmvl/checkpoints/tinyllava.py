"""Reading of TinyLLaVA checkpoints (Zhou et al. 2024, arXiv 2402.14289; TinyLLaVA_Factory's layout) and derived ones.

Their config.json carries whole sub-configs; the code that their folders may point at (auto_map) is not needed and not run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from medmvl.checkpoints.base_parts import llm_config, load_image_processor, load_tokenizer, plain_settings
from medmvl.checkpoints.resolve import Resolver
from medmvl.checkpoints.source import Source, generation_settings, is_tied
from medmvl.checkpoints.vision import check_feature, vision_spec
from medmvl.errors import CheckpointError, RecipeError
from medmvl.models import MedMVLConfig
from medmvl.models.connectors import ConnectorSpec
from medmvl.models.tower import TowerSpec
from medmvl.models.weights import Weights
from medmvl.processing import ImageProcessor, MedMVLProcessor

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def is_tinyllava(config: dict[str, Any]) -> bool:
    """Return whether a config.json is that of a TinyLLaVA checkpoint."""
    return str(config.get("model_type", "")).startswith("tinyllava") and "vision_config" in config


def read_tinyllava(folder: Path, raw: dict[str, Any], resolver: Resolver) -> Source:
    """Parse a TinyLLaVA checkpoint.

    Raises:
        CheckpointError: for a connector or an image layout that our parts do not have.
    """
    weights = Weights(folder)
    text_config = llm_config(_nested(raw, "text_config"))
    head = "language_model.lm_head.weight"
    text_config.tie_word_embeddings = is_tied(bool(text_config.tie_word_embeddings), weights, head)
    feature = raw.get("vision_feature_select_strategy", "patch")
    encoder = vision_spec(
        _nested(raw, "vision_config"), int(raw.get("vision_feature_layer", -2)), check_feature(feature)
    )
    tower = TowerSpec(encoder=encoder.to_dict(), connector=_connector(raw))
    config = MedMVLConfig(
        text_config=plain_settings(text_config),
        towers={"image": tower.to_dict()},
        dtype=raw.get("torch_dtype") or raw.get("dtype"),
    )
    tokenizer = _tokenizer(folder, raw, resolver)
    processor = MedMVLProcessor.from_parts(
        config,
        tokenizer,
        image=_image_processor(folder, raw, resolver),
        template=_template(text_config.model_type, tokenizer),
        max_length=raw.get("tokenizer_model_max_length"),
    )
    source = Source("TinyLLaVA", config, processor, generation=generation_settings(tokenizer), names=resolver.used)
    source.notes.append(
        "The folder does not say which prompt style it was trained with; the one usual for its LLM is used. "
        "Choose another with --template."
    )
    return source.take(weights, lambda name: _targets(name, tower))


def _nested(raw: dict[str, Any], key: str) -> dict[str, Any]:
    settings = raw.get(key)
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise CheckpointError(
            f"config.json has no complete {key} (with its model_type); the folder cannot be understood."
        )
    return settings


def _connector(raw: dict[str, Any]) -> ConnectorSpec:
    kind = str(raw.get("connector_type"))
    try:
        return ConnectorSpec(pooling="none", projector=kind)  # type: ignore[arg-type]
    except RecipeError as error:
        raise CheckpointError(f"The connector {kind!r} has no counterpart here; linear and mlpNx_gelu have.") from error


def _tokenizer(folder: Path, raw: dict[str, Any], resolver: Resolver) -> PreTrainedTokenizerBase:
    if any((folder / file).is_file() for file in _TOKENIZER_FILES):
        tokenizer = load_tokenizer(folder)
    else:
        name = raw.get("tokenizer_name_or_path") or raw.get("llm_model_name_or_path") or ""
        tokenizer = load_tokenizer(resolver(str(name), "tokenizer"))
    if raw.get("pad_token"):
        tokenizer.pad_token = raw["pad_token"]
    return tokenizer


def _image_processor(folder: Path, raw: dict[str, Any], resolver: Resolver) -> ImageProcessor:
    if not (folder / "preprocessor_config.json").is_file():
        folder = resolver(str(raw.get("vision_model_name_or_path", "")).split(":")[-1], "image encoder")
    processor = load_image_processor(folder)
    layout = raw.get("image_aspect_ratio") or "square"
    if layout == "square":
        return processor
    if layout == "pad":  # to a square of the mean color, then as usual
        crop = {"do_center_crop": bool(processor.settings.get("do_center_crop"))}
        padded = {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
        return ImageProcessor({**processor.settings, **crop, **padded})
    raise CheckpointError(
        f"Images were laid out as {layout!r} (image_aspect_ratio); only 'square' and 'pad' are known."
    )


def _template(model_type: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the prompt style whose end token is that of TinyLLaVA's template for this LLM."""
    if model_type == "llama":
        return "llama"
    return "qwen2" if tokenizer.eos_token == "<|im_end|>" else "phi"


def _targets(name: str, tower: TowerSpec) -> Sequence[str] | None:
    if name.startswith("language_model."):
        return [] if name.endswith("rotary_emb.inv_freq") else [name]
    if name.startswith("vision_tower._vision_tower."):
        key = tower.encoder_spec.pretrained_key(name.removeprefix("vision_tower._vision_tower."))
        return [] if key is None else [f"towers.image.encoder.{key}"]
    if match := re.fullmatch(r"connector\._connector\.(?:(\d+)\.)?(weight|bias)", name):
        return [f"towers.image.connector.projector.{match[1] or 0}.{match[2]}"]
    return None
