"""2D encoders of the transformers library (CLIP, SigLIP, ...), trimmed to what a VLM uses.

The features are those *before* the final layer norm (LLaVA, arXiv 2304.08485, and the MedM-VL reference), so the final
norm, the pooling head and the layers behind `select_layer` are dropped: nothing would ever train or use them.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from medmvl.errors import ModelError
from medmvl.models.encoders.base import ENCODERS, EncoderModule, EncoderSpec, divided
from medmvl.models.visual_tokens import Grid


class TransformersVisionSpec(EncoderSpec):
    """A vision transformer of the transformers library.

    Attributes:
        vision_config: the vision part of the model's config, complete, with its `model_type`.
        select_layer: index into the hidden states (embeddings first, then one per layer): -1 is the output of the
            last layer, -2 that of the one before.
        select_feature: "all" keeps every token, "patch" drops the prefix tokens (class token).
    """

    vision_config: dict[str, Any]
    select_layer: int = -1
    select_feature: Literal["all", "patch"] = "patch"

    #: per model_type: how many tokens stand before the patches.
    PREFIX_TOKENS: ClassVar[dict[str, int]] = {"siglip_vision_model": 0, "clip_vision_model": 1}

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return int(self.vision_config["hidden_size"])

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return int(self.vision_config.get("num_channels", 3))

    @property
    def input_size(self) -> tuple[int, int]:
        """Native (H, W)."""
        size = int(self.vision_config["image_size"])
        return size, size

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patches."""
        return self.PREFIX_TOKENS[self.vision_config["model_type"]]

    def grid(self, size: tuple[int, ...] | None = None) -> Grid:
        """Return the (h, w) grid; the class token stays as prefix if `select_feature` is "all"."""
        patch = int(self.vision_config["patch_size"])
        shape = divided(size or self.input_size, (patch, patch), f"The encoder {self.name!r}")
        return Grid(shape, prefix=self.prefix_tokens if self.select_feature == "all" else 0)

    def build(self) -> TransformersVisionEncoder:
        """Return the module with fresh weights."""
        return TransformersVisionEncoder(self, AutoModel.from_config(self.hf_config()))

    def hf_config(self) -> PreTrainedConfig:
        """Return the transformers config, without the layers and heads that are not used."""
        settings = dict(self.vision_config)
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        config.num_hidden_layers = self.used_layers
        if hasattr(config, "vision_use_head"):
            config.vision_use_head = False
        return config

    def published_key(self, name: str) -> str | None:
        """Return our name of a tensor of a whole or vision-only model; None for text parts, heads and layers not used."""
        if re.match(r"text_model\.|logit_|visual_projection\.|text_projection\.", name):
            return None
        name = name.removeprefix("vision_model.")
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        if name.startswith(("post_layernorm.", "head.")) or name == "embeddings.position_ids":
            return None
        return None if layer and int(layer[1]) >= self.used_layers else f"model.{name}"

    @property
    def used_layers(self) -> int:
        """How many layers stand before the selected hidden state."""
        layers = int(self.vision_config["num_hidden_layers"])
        used = self.select_layer if self.select_layer >= 0 else layers + 1 + self.select_layer
        if not 0 < used <= layers:
            raise ModelError(f"select_layer {self.select_layer} is not one of the {layers} layers of {self.name!r}.")
        return used

    @classmethod
    def spec_from_pretrained(cls, folder: str, **settings: Any) -> TransformersVisionSpec:
        """Take the vision part of the config in a folder or under a hub name."""
        config = AutoConfig.from_pretrained(folder)
        config = getattr(config, "vision_config", config)
        return cls(vision_config=config.to_dict(), **settings)

    @classmethod
    def from_pretrained(cls, folder: str, **settings: Any) -> tuple[EncoderSpec, EncoderModule]:
        """Take config and weights from a folder or hub name; of a text-image model only the vision part."""
        spec = cls.spec_from_pretrained(folder, **settings)
        model = AutoModel.from_pretrained(folder, config=spec.hf_config())
        return spec, TransformersVisionEncoder(spec, model)


class TransformersVisionEncoder(EncoderModule):
    """Runs the vision transformer up to the selected layer."""

    def __init__(self, spec: TransformersVisionSpec, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.model.post_layernorm = nn.Identity()
        self._drop = spec.prefix_tokens if spec.select_feature == "patch" else 0
        self._native_size = spec.input_size

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, tokens, hidden_size)."""
        interpolate = tuple(pixels.shape[-2:]) != self._native_size
        features = self.model(pixel_values=pixels, interpolate_pos_encoding=interpolate).last_hidden_state
        return features[:, self._drop :]


ENCODERS.add("siglip", TransformersVisionSpec)
ENCODERS.add("clip", TransformersVisionSpec)
