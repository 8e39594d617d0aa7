"""The parts of a new model, from folders, hub names, settings, configs or modules."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from medmvl.errors import ModelError
from medmvl.models.configuration import MedMVLConfig
from medmvl.models.connectors import ConnectorSpec, connector_spec
from medmvl.models.encoders import ENCODERS, EncoderModule, EncoderSpec, encoder_spec
from medmvl.models.encoders.medmvl_checkpoint import (
    is_medmvl_checkpoint,
    medmvl_checkpoint_encoder,
    medmvl_checkpoint_spec,
)
from medmvl.models.encoders.pretrained import check_found, load_pretrained
from medmvl.models.llms import check_llm
from medmvl.models.tower import TowerSpec
from medmvl.pretrained import check_size, open_pretrained, translate_load_errors

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
        kind = settings.pop("model_type")
        with translate_load_errors(f"The LLM {kind!r} cannot be loaded", "Check the settings of `llm`.", ModelError):
            return AutoConfig.for_model(kind, **settings)
    config = _load(partial(open_pretrained, AutoConfig), llm, "LLM")
    config = getattr(config, "text_config", None) or config
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        with translate_load_errors(f"The LLM {llm!r} cannot be loaded", "Check its config.json.", ModelError):
            check_size(AutoModelForCausalLM, llm, config)
    return config


def tower_spec(encoder: EncoderSource, connector: ConnectorSource, size: tuple[int, ...] | None = None) -> TowerSpec:
    """Return the spec of a tower; an encoder with `init_from` is described by that folder's config alone."""
    connector = connector if isinstance(connector, ConnectorSpec) else connector_spec(connector)
    return TowerSpec(encoder=_encoder_spec(encoder).to_dict(), connector=connector, size=size)


def _encoder_spec(encoder: EncoderSource) -> EncoderSpec:
    if isinstance(encoder, EncoderSpec):
        return encoder
    settings = {"name": encoder} if isinstance(encoder, str) else dict(encoder)
    folder = _init_from(settings)
    if folder is None:
        return encoder_spec(settings)
    if is_medmvl_checkpoint(folder):
        return medmvl_checkpoint_spec(folder, settings)
    return _load(lambda name: ENCODERS[settings["name"]].spec_from_pretrained(name, **settings), folder, "encoder")


def _init_from(settings: dict[str, Any]) -> str | None:
    """Take `init_from` out of an encoder's settings, also out of the inner encoder's of a wrapper such as slicewise."""
    folder = settings.pop("init_from", None)
    if isinstance(inner := settings.get("encoder"), dict) and "init_from" in inner:
        settings["encoder"] = {key: value for key, value in inner.items() if key != "init_from"}
        folder = inner["init_from"]
    return folder


def assemble_config(
    llm: LLMSource,
    towers: dict[str, tuple[EncoderSource, ConnectorSource]],
    sizes: dict[str, tuple[int, ...] | None],
    image_token_id: int | None = None,
    volume_token_id: int | None = None,
) -> MedMVLConfig:
    """Return the config of a new model; reads no weights.

    Args:
        llm: source of the LLM.
        towers: modality -> encoder and connector.
        sizes: modality -> input size; None is what the encoder was made for.
        image_token_id, volume_token_id: placeholder ids; default: just behind the LLM's vocabulary.
    """
    text_config = llm_config(llm)
    check_llm(text_config)
    vocab_size = text_config.vocab_size
    return MedMVLConfig(
        text_config=text_config.to_dict(),
        towers={name: tower_spec(*source, size=sizes[name]).to_dict() for name, source in towers.items()},
        image_token_id=vocab_size if image_token_id is None else image_token_id,
        volume_token_id=vocab_size + 1 if volume_token_id is None else volume_token_id,
    )


def pretrained_llm(llm: LLMSource) -> PreTrainedModel | None:
    """Return the LLM that a source holds; None for one that starts from random weights.

    Raises:
        ModelError, CheckpointError: if it cannot be loaded or lacks weights.
    """
    if isinstance(llm, PreTrainedModel):
        return llm
    if not isinstance(llm, str):
        return None
    model, missing = load_pretrained(AutoModelForCausalLM, llm)
    check_found(model, missing, llm)
    return model


def pretrained_encoder(source: EncoderSource) -> EncoderModule | None:
    """Return the encoder with the weights that its `init_from` names; None for one that starts from random weights."""
    if not isinstance(source, dict):
        return None
    settings = dict(source)
    folder = _init_from(settings)
    if folder is None:
        return None
    if is_medmvl_checkpoint(folder):
        return medmvl_checkpoint_encoder(folder, settings)
    return ENCODERS[settings["name"]].from_pretrained(folder, **settings)[1]


def _load(loader: Any, source: str, what: str) -> Any:
    """Call a loader and turn its failures into one sentence."""
    advice = "Give a local folder with config.json and weights, or a hub name that this machine can reach or has in its cache."
    with translate_load_errors(f"The {what} {source!r} cannot be loaded", advice, ModelError):
        return loader(source)
