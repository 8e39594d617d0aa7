"""Reading of HF LLaVA folders (`LlavaForConditionalGeneration` of transformers; Liu et al. 2023, arXiv 2310.03744)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from medmvl.checkpoints.base_parts import llm_config, load_image_processor, load_tokenizer, plain_settings
from medmvl.checkpoints.source import Source, generation_settings, is_tied
from medmvl.checkpoints.vision import check_feature, vision_spec
from medmvl.errors import CheckpointError
from medmvl.models import MedMVLConfig
from medmvl.models.connectors import ConnectorSpec
from medmvl.models.tower import TowerSpec
from medmvl.models.weights import Weights
from medmvl.pretrained import open_pretrained
from medmvl.processing import MedMVLProcessor

#: The LLM's body, its head, the vision tower and the projector, as transformers 4 and 5 name them.
_BODY = ("language_model.model.", "model.language_model.")
_HEAD = ("language_model.lm_head.", "lm_head.")
_VISION = ("vision_tower.", "model.vision_tower.")
_PROJECTOR = ("multi_modal_projector.linear_", "model.multi_modal_projector.linear_")


def is_llava(config: dict[str, Any]) -> bool:
    """Return whether a config.json is that of an HF LLaVA folder."""
    return config.get("model_type") == "llava" and "vision_config" in config


def read_llava(folder: Path, raw: dict[str, Any]) -> Source:
    """Parse an HF LLaVA folder, which holds the configs of all its parts.

    Raises:
        CheckpointError: for settings that MedM-VL's parts do not have.
    """
    weights = Weights(folder)
    text_config = llm_config({"model_type": "llama", **raw.get("text_config", {})})
    head = next((f"{name}weight" for name in _HEAD if f"{name}weight" in weights), f"{_HEAD[0]}weight")
    declared = raw.get("tie_word_embeddings", text_config.tie_word_embeddings)
    text_config.tie_word_embeddings = is_tied(bool(declared), weights, head)
    layer, act = raw.get("vision_feature_layer", -2), raw.get("projector_hidden_act", "gelu")
    if not isinstance(layer, int) or act != "gelu" or not raw.get("multimodal_projector_bias", True):
        raise CheckpointError(
            f"This LLaVA has vision_feature_layer {layer!r}, projector_hidden_act {act!r} and projector bias "
            f"{raw.get('multimodal_projector_bias', True)}; only one layer, gelu and a bias can be converted."
        )
    feature = check_feature(raw.get("vision_feature_select_strategy", "default"))
    encoder = vision_spec(raw["vision_config"], layer, feature)
    tower = TowerSpec(encoder=encoder.to_dict(), connector=ConnectorSpec())
    config = MedMVLConfig(
        text_config=plain_settings(text_config),
        towers={"image": tower.to_dict()},
        dtype=raw.get("torch_dtype") or raw.get("dtype"),
    )
    tokenizer = load_tokenizer(folder)
    # LLaVA-1.5 on Llama is Vicuna's USER/ASSISTANT style, which the style `llama` is word for word.
    vicuna = text_config.model_type == "llama" and "<|eot_id|>" not in tokenizer.get_vocab()
    processor = MedMVLProcessor.from_parts(
        config, tokenizer, image=load_image_processor(folder), template="llama" if vicuna else None
    )
    source = Source("HF LLaVA", config, processor, generation=generation_settings(tokenizer))
    source.original = partial(_logits, folder, config.image_token_id)
    source.notes.append("The prompt style is the one usual for the LLM; choose another with --template.")
    return source.take(weights, lambda name: _targets(name, tower))


@torch.no_grad()
def _logits(folder: Path, placeholder: int | None, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits (T, V) of a batch by transformers' LLaVA; `placeholder` is the id of `<image>` in the batch."""
    model = open_pretrained(LlavaForConditionalGeneration, folder, dtype="auto").eval()
    images = torch.isin(batch["input_ids"], torch.tensor(placeholder if placeholder is not None else -1))
    ids = batch["input_ids"].masked_fill(images, model.config.image_token_id)
    pixels = batch["pixel_values"].to(model.dtype)
    logits: Tensor = model(input_ids=ids, attention_mask=batch["attention_mask"], pixel_values=pixels).logits
    return logits[0].float()


def _targets(name: str, tower: TowerSpec) -> Sequence[str] | None:
    if (rest := _behind(name, _BODY)) is not None:
        return [] if rest.endswith("rotary_emb.inv_freq") else [f"language_model.model.{rest}"]
    if (rest := _behind(name, _HEAD)) is not None:
        return [f"language_model.lm_head.{rest}"]
    if (rest := _behind(name, _VISION)) is not None:
        key = tower.encoder_spec.pretrained_key(rest)
        return [] if key is None else [f"towers.image.encoder.{key}"]
    if (rest := _behind(name, _PROJECTOR)) is not None:
        number, _, kind = rest.partition(".")
        places = {"1": 0, "2": 2}
        return [f"towers.image.connector.projector.{places[number]}.{kind}"] if number in places else None
    return None


def _behind(name: str, prefixes: Sequence[str]) -> str | None:
    return next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), None)
