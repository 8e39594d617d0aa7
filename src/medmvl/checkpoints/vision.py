"""Conversion of the vision settings of LLaVA-like checkpoints to encoder specs."""

from __future__ import annotations

from typing import Any, Literal

from medmvl.checkpoints.base_parts import PROVENANCE
from medmvl.errors import CheckpointError
from medmvl.models.encoders import ENCODERS, EncoderSpec

#: model_type of a vision config -> our encoder.
VISION_NAMES = {"siglip_vision_model": "siglip", "clip_vision_model": "clip"}

_FEATURES: dict[str, Literal["all", "patch"]] = {
    "cls_patch": "all",
    "full": "all",
    "patch": "patch",
    "default": "patch",
}


def check_feature(strategy: str) -> Literal["all", "patch"]:
    """Return MedM-VL's name of a feature selection: "patch" drops the first token, "all" keeps it.

    Raises:
        CheckpointError: for an unknown selection.
    """
    if strategy not in _FEATURES:
        raise CheckpointError(f"Unknown vision_feature_select_strategy {strategy!r}. Known: {', '.join(_FEATURES)}.")
    return _FEATURES[strategy]


def vision_spec(settings: dict[str, Any], layer: int, feature: Literal["all", "patch"]) -> EncoderSpec:
    """Return the encoder spec that a vision config describes.

    Raises:
        CheckpointError: for an unknown vision model.
    """
    kind = settings.get("model_type")
    if kind not in VISION_NAMES:
        raise CheckpointError(f"The vision model {kind!r} cannot be converted. Known: {', '.join(VISION_NAMES)}.")
    return check_droppable(
        ENCODERS[VISION_NAMES[kind]].model_validate(
            {
                "name": VISION_NAMES[kind],
                "vision_config": {key: value for key, value in settings.items() if key not in PROVENANCE},
                "select_layer": layer,
                "select_feature": feature,
            }
        )
    )


def check_droppable(spec: EncoderSpec) -> EncoderSpec:
    """Raise if dropping the first token would drop a patch, because the encoder has no class token.

    Raises:
        CheckpointError: if so.
    """
    if getattr(spec, "select_feature", "all") == "patch" and getattr(spec, "num_prefix_tokens", 1) == 0:
        raise CheckpointError(
            f"The checkpoint drops the first token of {spec.name!r}, which has no class token: a corner of the image would "
            "be lost. It cannot be expressed here; train with all tokens kept (cls_patch, full)."
        )
    return spec
