"""CNNs (ResNet, ConvNeXt), whose last feature map is the grid, and any other vision model of transformers by its config.

Grid and width of such a model are read from a forward pass on torch's meta device, which allocates nothing, once per config
and size.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from medmvl.errors import ModelError
from medmvl.models.encoders.encoder import ENCODERS, EncoderModule, EncoderSpec
from medmvl.models.encoders.pretrained import check_found, load_pretrained
from medmvl.models.encoders.transformers_vision import drop_mask_token
from medmvl.models.grid import Grid
from medmvl.models.grid_rules import FAMILIES, native_size
from medmvl.pretrained import build_from_config, open_pretrained, translate_load_errors

#: More class and register tokens than any published model has.
_MOST_PREFIX_TOKENS = 16


class AnyVisionSpec(EncoderSpec):
    """A vision model of transformers that gives `last_hidden_state` for `pixel_values`.

    Attributes:
        vision_config: the model's config, complete, with its `model_type`.
        size: native (H, W); default: the config's `image_size`, else 224.
        select_feature: "all" keeps every token, "patch" drops tokens in front that have no place on the grid.
    """

    vision_config: dict[str, Any]
    size: tuple[int, int] | None = None
    select_feature: Literal["all", "patch"] = "patch"

    @model_validator(mode="after")
    def _named_family(self) -> AnyVisionSpec:
        kind = self.vision_config.get("model_type")
        if self.name != "transformers" and kind != self.name:
            raise ModelError(
                f"The encoder {self.name!r} takes a vision config of model_type {self.name!r}, got {kind!r}. "
                "Use the encoder 'transformers' for any other model."
            )
        if kind in FAMILIES:
            raise ModelError(f"The model_type {kind!r} has an encoder of its own: name it {FAMILIES[kind].encoder!r}.")
        return self

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return self._layout(self.input_size)[2]

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return int(self.vision_config.get("num_channels", 3))

    @property
    def input_size(self) -> tuple[int, ...]:
        """Native (H, W)."""
        return self.size or native_size(self.vision_config)

    def grid(self, size: tuple[int, ...] | None = None) -> Grid:
        """Return the (h, w) grid of the last feature map or layer."""
        shape, prefix, _ = self._layout(tuple(size or self.input_size))
        return Grid(shape, num_prefix_tokens=prefix if self.select_feature == "all" else 0)

    def _layout(self, size: tuple[int, ...]) -> tuple[tuple[int, int], int, int]:
        return _layout(json.dumps(self.vision_config, sort_keys=True, default=str), size, self.channels)

    def hf_config(self) -> PreTrainedConfig:
        """Return the transformers config."""
        return _config(self.vision_config)

    def build(self) -> AnyVisionEncoder:
        """Return the module with fresh weights."""
        return AnyVisionEncoder(self, build_from_config(AutoModel, self.hf_config()))

    @classmethod
    def spec_from_pretrained(cls, folder: str, **settings: Any) -> AnyVisionSpec:
        """Take the config in a folder or under a hub name; of a text-image model the vision part."""
        with translate_load_errors(
            f"The encoder {folder!r}", "Give a folder with config.json and weights.", ModelError
        ):
            config = open_pretrained(AutoConfig, folder)
        return cls(vision_config=getattr(config, "vision_config", config).to_dict(), **settings)

    @classmethod
    def from_pretrained(cls, folder: str, **settings: Any) -> tuple[EncoderSpec, EncoderModule]:
        """Take config and weights from a folder or hub name."""
        spec = cls.spec_from_pretrained(folder, **settings)
        model, missing = load_pretrained(AutoModel, folder, config=spec.hf_config())
        encoder = AnyVisionEncoder(spec, model)
        check_found(encoder, missing, folder, "model.")
        return spec, encoder


class AnyVisionEncoder(EncoderModule):
    """(N, C, H, W) -> (N, tokens, width), a feature map row by row."""

    def __init__(self, spec: AnyVisionSpec, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # What only the pooled output uses (a CNN's last norm, a pooling head) would never train.
        for name in ("pooler", "layernorm"):
            if isinstance(getattr(model, name, None), nn.Module) and not _feeds_features(model, name):
                setattr(model, name, nn.Identity())
        drop_mask_token(model)
        self._drop = spec._layout(spec.input_size)[1] if spec.select_feature == "patch" else 0

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images: (N, C, H, W) -> (N, tokens, width). A frozen model keeps its running statistics (batch norm)."""
        if self.training and not any(parameter.requires_grad for parameter in self.model.parameters()):
            self.model.eval()
        features = self.model(pixel_values=pixels).last_hidden_state
        if features.ndim == 4:
            features = features.flatten(2).transpose(1, 2)
        return features[:, self._drop :]


def _feeds_features(model: nn.Module, name: str) -> bool:
    """Return whether `last_hidden_state` depends on a module; in CNNs it does not depend on the norm after the pooling."""
    kind = getattr(model.config, "model_type", "")
    return name == "layernorm" and kind not in ("convnext", "convnextv2")


def _config(settings: dict[str, Any]) -> PreTrainedConfig:
    values = dict(settings)
    kind = values.pop("model_type", None)
    try:
        return AutoConfig.for_model(kind, **values)
    except (ValueError, KeyError) as error:
        raise ModelError(f"The vision model {kind!r} is none that transformers knows: {error}") from error


@lru_cache(maxsize=256)
def _layout(settings: str, size: tuple[int, ...], channels: int) -> tuple[tuple[int, int], int, int]:
    """Return grid, number of prefix tokens and width of a model's output, without allocating it."""
    config = _config(json.loads(settings))
    try:
        with torch.device("meta"), torch.no_grad():
            model = build_from_config(AutoModel, config).eval()
            features = model(pixel_values=torch.zeros(2, channels, *size)).last_hidden_state
    except Exception as error:  # the model is anyone's: whatever it raises means that it does not take such an image
        raise ModelError(f"The vision model {config.model_type!r} does not take images of {size}: {error}") from error
    if features.shape[0] != 2 or getattr(config, "mask_ratio", 0):
        raise ModelError(
            f"The vision model {config.model_type!r} joins the images of a batch, or hides patches at random (mask_ratio): its "
            "features have no fixed places. Take a plain one (the encoder of a masked autoencoder is a 'vit')."
        )
    if features.ndim == 4:
        return (features.shape[2], features.shape[3]), 0, features.shape[1]
    if features.ndim == 3:
        shape, prefix = _grid_of(features.shape[1], size)
        return shape, prefix, features.shape[2]
    raise ModelError(
        f"The vision model {config.model_type!r} gives features of shape {tuple(features.shape)}, no grid."
    )


def _grid_of(tokens: int, size: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """Find the grid of the image's aspect that `tokens` are, behind the fewest prefix tokens."""
    height, width = size
    for prefix in range(_MOST_PREFIX_TOKENS):
        for rows in range(1, tokens - prefix + 1):
            columns, rest = divmod(tokens - prefix, rows)
            if rest == 0 and rows * width == columns * height and height % rows == 0:
                return (rows, columns), prefix
    raise ModelError(f"{tokens} tokens for an image of {size} fit no grid of its aspect.")


for _name in ("resnet", "convnext", "convnextv2", "transformers"):
    ENCODERS.add(_name, AnyVisionSpec)
