"""A tiny random version of every registered part. A new entry in a registry needs one here, or the matrix test fails."""

from __future__ import annotations

from typing import Any

_VIT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16}
_SIGLIP = {"model_type": "siglip_vision_model", **_VIT, "patch_size": 4}
_CNN = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_channels": 3}
_3D = {"size": (4, 16, 16), "patch": (2, 4, 4), "width": 16, "layers": 2, "heads": 2}

#: name -> settings of a tiny encoder; several versions of one name are told apart behind a colon.
ENCODERS: dict[str, dict[str, Any]] = {
    "siglip": {"vision_config": _SIGLIP},
    "clip": {"vision_config": {"model_type": "clip_vision_model", **_VIT, "patch_size": 4}, "select_layer": -2},
    "clip:all": {
        "vision_config": {"model_type": "clip_vision_model", **_VIT, "patch_size": 4},
        "select_feature": "all",
    },
    "siglip2": {"vision_config": _SIGLIP},
    "siglip2:naflex": {
        "vision_config": {"model_type": "siglip2_vision_model", **_VIT, "patch_size": 4, "num_patches": 16}
    },
    "dinov2": {"vision_config": {"model_type": "dinov2", **_VIT, "patch_size": 4, "mlp_ratio": 2}},
    "dinov2:registers": {
        "vision_config": {"model_type": "dinov2_with_registers", **_VIT, "patch_size": 4, "num_register_tokens": 3}
    },
    "dinov3": {"vision_config": {"model_type": "dinov3_vit", **_VIT, "patch_size": 4, "num_register_tokens": 2}},
    "resnet": {
        "vision_config": {"model_type": "resnet", **_CNN, "embedding_size": 8, "layer_type": "basic"},
        "size": (32, 32),
    },
    "convnext": {
        "vision_config": {"model_type": "convnext", **_CNN, "num_stages": 2, "patch_size": 4, "image_size": 32}
    },
    "convnextv2": {
        "vision_config": {"model_type": "convnextv2", **_CNN, "num_stages": 2, "patch_size": 4, "image_size": 32}
    },
    "transformers": {"vision_config": {"model_type": "vit", **_VIT, "patch_size": 4}},
    "transformers:swin": {
        "vision_config": {
            "model_type": "swin",
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "window_size": 4,
        }
    },
    "tiled": {"encoder": {"name": "siglip", "vision_config": _SIGLIP}, "tiles": (1, 2)},
    "slicewise": {"encoder": {"name": "siglip", "vision_config": _SIGLIP}, "slices": 4},
    "slicewise:cls": {
        "encoder": {
            "name": "clip",
            "vision_config": {"model_type": "clip_vision_model", **_VIT, "patch_size": 4},
            "select_feature": "all",
        },
        "slices": 2,
    },
    "vit3d": {**_3D, "mlp_ratio": 2},
    "m3dclip": {**_3D, "mlp": 24},
    "medmclip": {**_3D, "mlp": 24, "select_feature": "all"},
}

POOLINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "average": {},
    "spatial": {},
    "attention": {"heads": 2},
    "pixel_shuffle": {},
    "perceiver": {"queries": (2, 2), "heads": 2, "layers": 1},
}

PROJECTORS = ("linear", "mlp2x_gelu", "norm_mlp2x_gelu", "mlp3x_gelu")

_LLM = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

#: model_type -> what differs from `_LLM`.
LLMS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 32},
    "phi": {},
    "phi3": {},
    "smollm3": {},
    "mistral": {},
}

#: Causal LMs that are in no table; they work with defaults.
OTHER_LLMS: dict[str, dict[str, Any]] = {"olmo2": {}, "stablelm": {}}


def encoder(key: str) -> dict[str, Any]:
    """Return the settings of a tiny encoder."""
    return {"name": key.partition(":")[0], **ENCODERS[key]}


def pooling(name: str) -> dict[str, Any]:
    """Return the settings of a small pooling."""
    return {"name": name, **POOLINGS[name]}


def llm(model_type: str) -> dict[str, Any]:
    """Return the settings of a tiny LLM."""
    return {"model_type": model_type, **_LLM, **{**LLMS, **OTHER_LLMS}[model_type]}
