"""Reading of checkpoints of the reference implementation (MedM-VL, Shi et al. 2025, arXiv 2504.04323)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from medmvl.checkpoints.base_parts import (
    llm_config,
    load_image_processor,
    load_tokenizer,
    plain_settings,
    slice_normalization,
)
from medmvl.checkpoints.lora import UNMERGED, merged_entries
from medmvl.checkpoints.reference_config import REFERENCE_SLICES, EncoderFacts, ReferenceFacts, reference_facts
from medmvl.checkpoints.resolve import Resolver
from medmvl.checkpoints.source import Source, generation_settings, is_tied
from medmvl.checkpoints.vision import check_droppable
from medmvl.errors import CheckpointError
from medmvl.files import read_json
from medmvl.imaging import geometry
from medmvl.models import MedMVLConfig
from medmvl.models.connectors import ConnectorSpec
from medmvl.models.encoders import ENCODERS, EncoderSpec
from medmvl.models.tower import TowerSpec
from medmvl.models.weights import Weights
from medmvl.processing import ImageProcessor, MedMVLProcessor, Normalization, VolumeProcessor

#: Volume encoder -> geometry that reproduces the reference's preprocessing.
_GEOMETRIES = {"slicewise": "medm-vl-ct", "m3dclip": "medm-vl-ct-m3dclip", "medmclip": "medm-vl-ct-medmclip"}

_KNOWN_PARTS = ("encoder_image", "connector_image", "encoder_image3d", "connector_image3d")
_VOLUME = ("encoder_image3d", "connector_image3d")


@dataclass(frozen=True, slots=True)
class Route:
    """A tower, and the parts of the reference's state dict that hold its encoder and connector."""

    tower: TowerSpec
    encoder: str
    connector: str


def read_reference(
    folder: Path,
    raw: dict[str, Any],
    resolver: Resolver,
    *,
    hub_generation: bool = False,
    lora_alpha: float | None = None,
    towers: Sequence[str] | None = None,
) -> Source:
    """Parse a reference checkpoint.

    Args:
        folder: the checkpoint.
        raw: its config.json.
        resolver: finds the base parts' folders.
        hub_generation: whether to use the LLM's generation_config.json, as the reference did before October 2025.
        lora_alpha: LoRA alpha of an intermediate save with unmerged adapters.
        towers: inputs of the 2D encoder: "image", "volume" (slice by slice) or both.

    Raises:
        CheckpointError: if a value is unknown or parts are missing.
    """
    if "auto_map" in raw:
        raise CheckpointError(
            f"{folder / 'config.json'} asks for code of its own (auto_map), which this layout never writes and which is never "
            "run. Remove the key if you know where the folder comes from."
        )
    facts = reference_facts(raw)
    weights = Weights(folder)
    llm_folder = resolver(facts.llm_name, "LLM")
    text_config = llm_config(llm_folder)
    text_config.tie_word_embeddings = is_tied(bool(text_config.tie_word_embeddings), weights, _head(weights))
    routes = _towers(facts, resolver, towers)
    specs = {modality: route.tower for modality, route in routes.items()}
    config = MedMVLConfig(
        text_config=plain_settings(text_config),
        towers={modality: tower.to_dict() for modality, tower in specs.items()},
        dtype=facts.dtype,
    )
    processor = _processor(facts, config, llm_folder, specs, resolver)
    source = Source(
        layout=f"MedM-VL reference, {'layout before October 2025' if facts.legacy else 'current layout'}",
        config=config,
        processor=processor,
        generation=generation_settings(processor.tokenizer),
    )
    _add_generation(source, llm_folder, facts, hub_generation)
    _add_notes(source, facts, specs)
    source.take(weights, lambda name: _targets(name, routes))
    if any(UNMERGED.search(name) for name in weights):
        source.entries.update(merged_entries(weights, "llm.base_model.model.", "language_model.", lora_alpha))
    source.names = resolver.used
    return source


def _head(weights: Weights) -> str:
    unmerged = "llm.base_model.model.lm_head.weight"
    return unmerged if any(name.startswith("llm.base_model.") for name in weights) else "llm.lm_head.weight"


def _towers(facts: ReferenceFacts, resolver: Resolver, wanted: Sequence[str] | None) -> dict[str, Route]:
    """Return the towers.

    If there is a 2D encoder, the reference sends images and volumes through it, a volume slice by slice. A checkpoint does not
    record which of the two it was trained on; attention pooling is meant for stacks of slices.
    """
    if facts.image_encoder is None:
        if facts.volume_encoder is None or facts.volume_connector is None:
            raise CheckpointError("config.json names no encoder with a connector: there is nothing to look with.")
        return {"volume": Route(_tower(_encoder(facts.volume_encoder, resolver), facts.volume_connector), *_VOLUME)}
    image = _encoder(facts.image_encoder, resolver)
    connector = facts.image_connector or facts.volume_connector
    if connector is None:
        raise CheckpointError("config.json has an encoder_image but no connector.")
    parts = ("encoder_image", "connector_image" if facts.image_connector else "connector_image3d")
    slices = {"name": "slicewise", "encoder": image.to_dict(), "slices": REFERENCE_SLICES}
    encoders = {"image": image, "volume": ENCODERS["slicewise"].model_validate(slices)}
    usual = ("volume",) if connector.pooling["name"] == "attention" else ("image",)
    return {modality: Route(_tower(encoders[modality], connector), *parts) for modality in wanted or usual}


def _encoder(facts: EncoderFacts, resolver: Resolver) -> EncoderSpec:
    folder = resolver(facts.name, "encoder")
    settings = {"name": facts.type, "select_layer": facts.select_layer, "select_feature": facts.select_feature}
    return check_droppable(ENCODERS[facts.type].spec_from_pretrained(str(folder), **settings))


def _tower(encoder: EncoderSpec, connector: ConnectorSpec) -> TowerSpec:
    return TowerSpec(encoder=encoder.to_dict(), connector=connector)


def _processor(
    facts: ReferenceFacts, config: MedMVLConfig, llm_folder: Path, towers: dict[str, TowerSpec], resolver: Resolver
) -> MedMVLProcessor:
    tokenizer, slow_spaces = reference_tokenizer(llm_folder, facts.llm_type, config.text_config)
    slices = None
    if facts.image_encoder:
        slices = load_image_processor(resolver(facts.image_encoder.name, "encoder"))
    processor = MedMVLProcessor.from_parts(
        config,
        tokenizer,
        image=slices if "image" in towers else None,
        volume=_volume_processor(towers["volume"], slices) if "volume" in towers else None,
        template=facts.llm_type,
        max_length=facts.max_length,
    )
    processor.slow_spaces = slow_spaces
    return processor


def reference_tokenizer(
    folder: Path, llm_type: str, config: PreTrainedConfig | None = None
) -> tuple[PreTrainedTokenizerBase, bool]:
    """Return an LLM's tokenizer with the reference's pad token, and whether it must imitate the slow sentencepiece tokenizer.

    The reference uses slow tokenizers. Fast ones give the same ids except where a piece begins with a space: with the
    pre-tokenizer "Metaspace, first" they omit the word mark there.
    """
    tokenizer = load_tokenizer(folder, config)
    pads = {"llama3": tokenizer.eos_token, "phi": tokenizer.unk_token}
    tokenizer.pad_token = pads.get(llm_type) or tokenizer.pad_token or tokenizer.eos_token
    steps = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    return tokenizer, steps.get("type") == "Metaspace" and steps.get("prepend_scheme") == "first"


def _volume_processor(tower: TowerSpec, slices: ImageProcessor | None) -> VolumeProcessor:
    name = tower.encoder["name"]
    normalization = slice_normalization(slices) if slices else Normalization()
    return VolumeProcessor(geometry(_GEOMETRIES[name], size=tower.input_size), normalization)


def _targets(name: str, routes: Mapping[str, Route]) -> Sequence[str] | None:
    """Return the names of a tensor in the MedM-VL model; a 2D encoder may belong to two towers."""
    if name.startswith("llm."):
        return _llm_targets(name.removeprefix("llm."))
    part, _, rest = name.partition(".")
    if part not in _KNOWN_PARTS:
        return None
    targets: list[str] = []
    for modality, route in routes.items():
        if part == route.connector:
            key = _connector_key(rest)
            if key is None:
                return None
            targets.append(f"towers.{modality}.connector.{key}")
        elif part == route.encoder and rest.startswith("encoder."):
            key = route.tower.encoder_spec.pretrained_key(rest.removeprefix("encoder."))
            targets += [f"towers.{modality}.encoder.{key}"] if key is not None else []
    return targets


def _llm_targets(name: str) -> Sequence[str]:
    if name.endswith("rotary_emb.inv_freq"):  # a buffer that older versions saved; it is computed
        return []
    if name.startswith("base_model.model."):  # an unmerged LoRA save: what it adapts is merged elsewhere
        name = name.removeprefix("base_model.model.")
        return [] if UNMERGED.search(name) else [f"language_model.{name}"]
    return [f"language_model.{name}"]


def _connector_key(name: str) -> str | None:
    if match := re.fullmatch(r"connector\.(\d+)\.(weight|bias)", name):
        return f"projector.{match[1]}.{match[2]}"
    return f"pooling.{name}" if name == "query" or name.startswith("attn.") else None


def _add_generation(source: Source, llm_folder: Path, facts: ReferenceFacts, wanted: bool) -> None:
    """Add the LLM's generation settings if `wanted`; otherwise add a note that they exist."""
    file = llm_folder / "generation_config.json"
    if not file.is_file():
        return
    stored = read_json(file)
    if not isinstance(stored, dict):
        raise CheckpointError(f"{file} must hold a JSON object. Copy it again.")
    rules = ("repetition_penalty", "temperature", "top_k", "top_p")
    settings = {key: stored[key] for key in rules if key in stored}
    if not settings:
        return
    text = ", ".join(f"{key} {value}" for key, value in settings.items())
    if wanted:
        source.generation.update(settings, do_sample=bool(stored.get("do_sample", False)))
        source.notes.append(f"Generation follows the LLM's generation_config.json: {text}.")
    elif facts.legacy:
        source.notes.append(
            f"The code that wrote this checkpoint generated with the LLM's generation_config.json ({text}), greedy search "
            "included. It is left out here, as in the current code; --hub-generation takes it over."
        )


def _add_notes(source: Source, facts: ReferenceFacts, towers: dict[str, TowerSpec]) -> None:
    if facts.legacy and "volume" in towers:
        source.notes.append(
            "Code before October 2025 took volumes already windowed to 0..255; this checkpoint's geometry takes Hounsfield "
            "units and does the same window itself."
        )
    if facts.image_encoder and len(towers) == 1:
        served, other = ("volumes", "image") if "volume" in towers else ("images", "volume")
        source.notes.append(
            f"The model gets a tower for {served}. The reference used the same 2D encoder for both kinds of input; if this "
            f"checkpoint was trained on the other, convert it with --towers {other} (or both)."
        )
    if facts.volume_encoder and facts.image_encoder:
        source.notes.append(
            "The named volume encoder was never used together with a 2D encoder; its weights are left out."
        )
    if len(towers) == 2 and facts.image_encoder:
        source.notes.append(
            "Images and volumes shared one encoder; here each tower has its own copy, so that either can train."
        )
