"""Metadata and tensors of vision tower and projector for llama.cpp's multimodal runner (an `mmproj` file)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from medmvl.checkpoints.base_parts import slice_normalization
from medmvl.errors import CheckpointError, require
from medmvl.models import MedMVLConfig
from medmvl.models.encoders.transformers_vision import TransformersVisionSpec
from medmvl.processing import ImageProcessor

#: Activations: llama.cpp has GELU (tanh) by flag, SiLU by flag, and quick GELU without one.
_FLAGS = {"gelu_pytorch_tanh": True, "gelu": True, "gelu_new": True, "quick_gelu": False}

_ENCODER, _PROJECTOR = "towers.image.encoder.model.", "towers.image.connector.projector."


def check_vision(config: MedMVLConfig, spec: TransformersVisionSpec) -> None:
    """Raise if llama.cpp's LLaVA graph cannot run the vision tower.

    Raises:
        CheckpointError: with the reason.
    """
    if spec.num_prefix_tokens and spec.select_feature == "all":
        raise CheckpointError("llama.cpp drops the class token of a vision tower, and this model keeps it.")
    if (act := spec.vision_config.get("hidden_act")) is not None and act not in _FLAGS:
        raise CheckpointError(f"llama.cpp's vision tower has no activation {act!r}.")


def add_vision_facts(writer: Any, config: MedMVLConfig, spec: TransformersVisionSpec, image: dict[str, Any]) -> None:
    """Write the hyperparameters of the vision tower.

    The features are those of the last layer we keep, before any final norm: `feature_layer` states that, because
    llama.cpp takes the second to last layer by default.
    """
    vision = spec.hf_config()
    normalization = slice_normalization(ImageProcessor(image))
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_use_gelu(_FLAGS[vision.hidden_act])
    writer.add_vision_image_size(spec.input_size[0])
    writer.add_vision_patch_size(spec.patch)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_projection_dim(config.text_config.hidden_size)
    writer.add_vision_block_count(vision.num_hidden_layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_image_mean(_three(normalization.mean))
    writer.add_vision_image_std(_three(normalization.std))
    writer.add_array("clip.vision.feature_layer", [vision.num_hidden_layers])
    writer.add_string("clip.vision.mm_patch_merge_type", "flat")


def _three(value: float | tuple[float, ...]) -> list[float]:
    return list(value) if isinstance(value, tuple) else [value] * 3


def vision_tensors(spec: TransformersVisionSpec, state: dict[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (our name, llama.cpp's name, values of any shape) of the tower and the projector.

    Args:
        state: the whole model's state dict.

    Raises:
        CheckpointError: for a tensor that llama.cpp has no place for.
    """
    gguf = require("gguf", "gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, spec.used_layers)
    for name, tensor in state.items():
        if name.startswith(_PROJECTOR):
            yield name, f"mm.{name.removeprefix(_PROJECTOR)}", tensor
        elif name.startswith(_ENCODER):
            published = f"vision_tower.vision_model.{name.removeprefix(_ENCODER)}"
            target = names.get_name(published, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise CheckpointError(f"llama.cpp has no place for the tensor {name}.")
            yield name, target, tensor
