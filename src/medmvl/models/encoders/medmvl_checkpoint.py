"""Encoders from MedM-VL checkpoints, as the start of another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medmvl.auto_classes import DUAL_ENCODER_TYPE, MODEL_TYPE
from medmvl.errors import ModelError
from medmvl.models.encoders.encoder import EncoderModule, EncoderSpec, encoder_spec
from medmvl.models.encoders.pretrained import load_pretrained_weights, read_config


def medmvl_checkpoint_kind(folder: str) -> str | None:
    """Return what kind of MedM-VL checkpoint a local folder is; None for a hub name or another model's folder."""
    if not (Path(folder) / "config.json").is_file():
        return None
    kind = read_config(folder, "checkpoint").get("model_type")
    return kind if kind in (MODEL_TYPE, DUAL_ENCODER_TYPE) else None


def is_medmvl_checkpoint(folder: str) -> bool:
    """Return whether `folder` is a local MedM-VL checkpoint of either kind."""
    return medmvl_checkpoint_kind(folder) is not None


def medmvl_checkpoint_spec(folder: str, settings: dict[str, Any]) -> EncoderSpec:
    """Return the spec of the checkpoint's encoder that `settings` name; further settings replace those of the checkpoint.

    A wrapper such as slicewise may come from the checkpoint, or be put around its 2D encoder.

    Raises:
        ModelError: if the checkpoint has no encoder of that name.
    """
    return _find(folder, settings)[0]


def medmvl_checkpoint_encoder(folder: str, settings: dict[str, Any]) -> EncoderModule:
    """Return the checkpoint's encoder that `settings` name, with its weights.

    Raises:
        ModelError: if the checkpoint has no encoder of that name.
        CheckpointError: if the weights do not fit, such as after a change of a size that they depend on.
    """
    spec, source, target = _find(folder, settings)
    module = spec.build()
    load_pretrained_weights(
        module, folder, lambda name: f"{target}{name.removeprefix(source)}" if name.startswith(source) else None
    )
    return module


def _find(folder: str, settings: dict[str, Any]) -> tuple[EncoderSpec, str, str]:
    """Return the spec, the prefix of its tensors in the checkpoint, and their prefix in our module."""
    towers = read_config(folder, "checkpoint").get("towers") or {}
    own = {
        tower["encoder"]["name"]: (f"towers.{modality}.encoder.", tower["encoder"])
        for modality, tower in towers.items()
    }
    name, inner = settings["name"], settings.get("encoder")
    if name in own:
        prefix, found = own[name]
        merged = {**found, **settings}
        if isinstance(inner, dict):
            merged["encoder"] = {**found["encoder"], **inner}
        return encoder_spec(merged), prefix, ""
    if isinstance(inner, dict) and inner.get("name") in own:
        prefix, found = own[inner["name"]]
        return encoder_spec({**settings, "encoder": {**found, **inner}}), prefix, "encoder."
    raise ModelError(
        f"The checkpoint {folder!r} has no encoder {name!r} to start from; it has {', '.join(sorted(own)) or 'none'}. "
        "Name one of these."
    )
