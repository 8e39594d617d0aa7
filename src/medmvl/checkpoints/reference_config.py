"""Parsing of the reference's config.json, current and older layout (MedM-VL, commits 225fc0f and 4a84399)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from medmvl.errors import CheckpointError, did_you_mean
from medmvl.models.connectors import ConnectorSpec

#: Number of slices that the reference's 3D preprocessing makes for every config.
REFERENCE_SLICES = 32

LLM_TYPES = ("qwen2", "llama", "llama3", "phi", "phi3")
IMAGE_ENCODERS = ("siglip", "clip")
VOLUME_ENCODERS = ("m3dclip", "medmclip")
_CONNECTORS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "none"},
    "spatial_pooling": {"name": "spatial", "factor": 2},
    "attn_pooling": {"name": "attention", "heads": 8},
}
_FEATURES: dict[str, Literal["all", "patch"]] = {"cls_patch": "all", "patch": "patch"}


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """Type of an encoder ("siglip", "m3dclip", ...), name of its base part, and its selected features."""

    type: str
    name: str
    select_layer: int
    select_feature: Literal["all", "patch"]


@dataclass(frozen=True, slots=True)
class ReferenceFacts:
    """Contents of a reference checkpoint's config.json.

    Attributes:
        legacy: True for the layout before October 2025.
        llm_type: one of `LLM_TYPES`.
        llm_name: name of the LLM's base part.
        max_length: longest sequence, visual tokens included.
        image_encoder, volume_encoder: None where absent.
        image_connector, volume_connector: None where absent.
        dtype: dtype of the stored weights.
    """

    legacy: bool
    llm_type: str
    llm_name: str
    max_length: int | None
    image_encoder: EncoderFacts | None
    volume_encoder: EncoderFacts | None
    image_connector: ConnectorSpec | None
    volume_connector: ConnectorSpec | None
    dtype: str | None


def is_reference(config: dict[str, Any]) -> bool:
    """Return whether a config.json is that of a reference checkpoint, in either layout."""
    legacy = "model_type" not in config and "llm_name_or_path" in config
    return config.get("model_type") == "lvlm" or legacy


def reference_facts(config: dict[str, Any]) -> ReferenceFacts:
    """Parse a reference config.json.

    Raises:
        CheckpointError: naming the key, for a missing or unknown value.
    """
    legacy = config.get("model_type") != "lvlm"
    prefix = "" if legacy else "lvlm_"
    facts = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
    return ReferenceFacts(
        legacy=legacy,
        llm_type=_known(facts, "llm_type", LLM_TYPES),
        llm_name=str(_given(facts, "llm_name_or_path")),
        max_length=facts.get("llm_max_length"),
        image_encoder=_encoder(facts, "encoder_image", IMAGE_ENCODERS),
        volume_encoder=_encoder(facts, "encoder_image3d", VOLUME_ENCODERS),
        image_connector=_connector(facts, "connector_image"),
        volume_connector=_connector(facts, "connector_image3d"),
        dtype=config.get("torch_dtype") or config.get("dtype"),
    )


def _encoder(facts: dict[str, Any], part: str, known: tuple[str, ...]) -> EncoderFacts | None:
    if facts.get(f"{part}_type") is None:
        return None
    feature = _known(facts, f"{part}_select_feature", tuple(_FEATURES))
    return EncoderFacts(
        type=_known(facts, f"{part}_type", known),
        name=str(_given(facts, f"{part}_name_or_path")),
        select_layer=int(_given(facts, f"{part}_select_layer")),
        select_feature=_FEATURES[feature],
    )


def _connector(facts: dict[str, Any], part: str) -> ConnectorSpec | None:
    if facts.get(f"{part}_type") is None:
        return None
    pooling = _CONNECTORS[_known(facts, f"{part}_type", tuple(_CONNECTORS))]
    return ConnectorSpec(pooling=pooling, projector=str(_given(facts, f"{part}_name")))


def _given(facts: dict[str, Any], key: str) -> Any:
    if facts.get(key) is None:
        raise CheckpointError(f"config.json has no value for {key!r}, which this layout always writes.")
    return facts[key]


def _known(facts: dict[str, Any], key: str, known: tuple[str, ...]) -> str:
    value = _given(facts, key)
    if value not in known:
        raise CheckpointError(f"config.json: unknown {key} {value!r}. {did_you_mean(str(value), known)}")
    return str(value)
