"""Parts become a model: from names of folders, configs, or modules that are already there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from medmvl.errors import ModelError
from medmvl.models.configuration import MedMVLConfig
from medmvl.models.connectors import ConnectorSpec, connector_spec
from medmvl.models.encoders import ENCODERS, EncoderModule, EncoderSpec, encoder_spec
from medmvl.models.encoders.own import is_own_checkpoint, own_encoder, own_spec
from medmvl.models.encoders.published import check_found, load_pretrained
from medmvl.models.tower import TowerSpec

if TYPE_CHECKING:
    from medmvl.models.modeling import MedMVLForConditionalGeneration

#: A folder or hub name, settings with `model_type`, a transformers config, or a causal LM.
LLMSource = Any
EncoderSource = str | dict[str, Any] | EncoderSpec
ConnectorSource = str | dict[str, Any] | ConnectorSpec


def llm_config(llm: LLMSource) -> PreTrainedConfig:
    """Return the config of an LLM given as folder, hub name, settings, config or model; reads no weights."""
    if isinstance(llm, PreTrainedModel):
        return llm.config
    if isinstance(llm, PreTrainedConfig):
        return llm
    if isinstance(llm, dict):
        settings = dict(llm)
        if "model_type" not in settings:
            raise ModelError("An LLM given as settings needs its `model_type`, such as qwen2, llama or phi3.")
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    config = _load(AutoConfig.from_pretrained, llm, "LLM")
    return getattr(config, "text_config", None) or config


def tower_spec(encoder: EncoderSource, connector: ConnectorSource, size: tuple[int, ...] | None = None) -> TowerSpec:
    """Return the facts of a tower; an encoder with `init_from` is described by that folder's config alone."""
    connector = connector if isinstance(connector, ConnectorSpec) else connector_spec(connector)
    return TowerSpec(encoder=_encoder_spec(encoder).to_dict(), connector=connector, size=size)


def _encoder_spec(encoder: EncoderSource) -> EncoderSpec:
    if isinstance(encoder, EncoderSpec):
        return encoder
    settings = {"name": encoder} if isinstance(encoder, str) else dict(encoder)
    folder = _init_from(settings)
    if folder is None:
        return encoder_spec(settings)
    if is_own_checkpoint(folder):
        return own_spec(folder, settings)
    return _load(lambda name: ENCODERS[settings["name"]].spec_from_pretrained(name, **settings), folder, "encoder")


def _init_from(settings: dict[str, Any]) -> str | None:
    """Take `init_from` out of an encoder's settings, also out of the inner encoder's of a wrapper such as slicewise."""
    folder = settings.pop("init_from", None)
    if isinstance(inner := settings.get("encoder"), dict) and "init_from" in inner:
        settings["encoder"] = {key: value for key, value in inner.items() if key != "init_from"}
        folder = inner["init_from"]
    return folder


def from_parts(
    llm: LLMSource,
    image: tuple[EncoderSource, ConnectorSource] | None = None,
    volume: tuple[EncoderSource, ConnectorSource] | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    volume_size: tuple[int, int, int] | None = None,
    image_token_id: int | None = None,
    volume_token_id: int | None = None,
) -> MedMVLForConditionalGeneration:
    """Assemble a new model; see `MedMVLForConditionalGeneration.from_parts`."""
    from medmvl.models.modeling import MedMVLForConditionalGeneration

    text_config = llm_config(llm)
    sources = {"image": (image, image_size), "volume": (volume, volume_size)}
    towers = {
        modality: tower_spec(*source, size=size).to_dict() for modality, (source, size) in sources.items() if source
    }
    vocab_size = text_config.vocab_size
    config = MedMVLConfig(
        text_config=text_config.to_dict(),
        towers=towers,
        image_token_id=vocab_size if image_token_id is None else image_token_id,
        volume_token_id=vocab_size + 1 if volume_token_id is None else volume_token_id,
    )
    model = MedMVLForConditionalGeneration(config)
    _fill_llm(model, llm)
    for modality, (source, _) in sources.items():
        if source:
            _fill_encoder(model, modality, source[0])
    return model


def _fill_llm(model: MedMVLForConditionalGeneration, llm: LLMSource) -> None:
    if isinstance(llm, str):
        model.language_model, missing = load_pretrained(AutoModelForCausalLM, llm)
        check_found(model.language_model, missing, llm)
    elif isinstance(llm, PreTrainedModel):
        model.language_model = llm
    model.config.text_config = model.language_model.config


def _fill_encoder(model: MedMVLForConditionalGeneration, modality: str, encoder: EncoderSource) -> None:
    if isinstance(encoder, EncoderSpec | str) or (module := pretrained_encoder(encoder)) is None:
        return
    model.towers[modality].encoder = module


def pretrained_encoder(settings: dict[str, Any]) -> EncoderModule | None:
    """Return the encoder with the weights that its `init_from` names; None for one that starts fresh."""
    settings = dict(settings)
    folder = _init_from(settings)
    if folder is None:
        return None
    if is_own_checkpoint(folder):
        return own_encoder(folder, settings)
    return ENCODERS[settings["name"]].from_pretrained(folder, **settings)[1]


def _load(loader: Any, source: str, what: str) -> Any:
    """Call a transformers loader; its failures become one sentence."""
    try:
        return loader(source)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ModelError(
            f"The {what} {source!r} cannot be loaded: {first_line} Give a local folder with config.json and weights, or a "
            "hub name that this machine can reach or has in its cache."
        ) from error
