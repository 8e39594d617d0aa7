"""2D vision transformers of the transformers library (CLIP, SigLIP, DINOv2, DINOv3), trimmed to what a VLM uses.

The features are those *before* the final layer norm (LLaVA, arXiv 2304.08485, and the MedM-VL reference), so the final
norm, the pooling head and the layers behind `select_layer` are dropped: nothing would ever train or use them.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig

from medmvl.errors import ModelError
from medmvl.models.encoders.encoder import ENCODERS, EncoderModule, EncoderSpec
from medmvl.models.encoders.positions import log_interpolation
from medmvl.models.encoders.pretrained import check_found, load_pretrained
from medmvl.models.grid import Grid
from medmvl.models.grid_rules import FAMILIES, VisionFamily, divided
from medmvl.pretrained import build_from_config, translate_load_errors


class TransformersVisionSpec(EncoderSpec):
    """A vision transformer of the transformers library.

    Attributes:
        vision_config: the vision part of the model's config, complete, with its `model_type`.
        select_layer: index into the hidden states (embeddings first, then one per layer): -1 is the output of the
            last layer, -2 that of the one before.
        select_feature: "all" keeps every token, "patch" drops the prefix tokens (class token, registers).
    """

    vision_config: dict[str, Any]
    select_layer: int = -1
    select_feature: Literal["all", "patch"] = "patch"

    @model_validator(mode="after")
    def _of_the_family(self) -> TransformersVisionSpec:
        self.check_model_type({kind for kind, family in FAMILIES.items() if family.encoder == self.name})
        return self

    def check_model_type(self, known: set[str]) -> None:
        """Refuse a vision config that is of another family than the encoder's name says."""
        if (kind := self.vision_config.get("model_type")) not in known:
            right = FAMILIES[kind].encoder if kind in FAMILIES else "transformers"
            raise ModelError(
                f"The encoder {self.name!r} takes a vision config of model_type {' or '.join(sorted(known))}, got {kind!r}. "
                f"Call the encoder {right!r}."
            )

    @property
    def family(self) -> VisionFamily:
        """The family of the model type."""
        return FAMILIES[self.vision_config["model_type"]]

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return int(self.vision_config["hidden_size"])

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return int(self.vision_config.get("num_channels", 3))

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.vision_config["patch_size"])

    @property
    def input_size(self) -> tuple[int, ...]:
        """Native (H, W)."""
        size = int(self.vision_config["image_size"])
        return size, size

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches."""
        return self.family.num_prefix_tokens(self.vision_config)

    def grid(self, size: tuple[int, ...] | None = None) -> Grid:
        """Return the (h, w) grid; prefix tokens stay if `select_feature` is "all"."""
        shape = divided(size or self.input_size, (self.patch, self.patch), f"The encoder {self.name!r}")
        return Grid(shape, num_prefix_tokens=self.num_prefix_tokens if self.select_feature == "all" else 0)

    def build(self) -> EncoderModule:
        """Return the module with fresh weights."""
        return TransformersVisionEncoder(self, build_from_config(AutoModel, self.hf_config()))

    def hf_config(self) -> PreTrainedConfig:
        """Return the transformers config, without the layers and heads that are not used."""
        settings = dict(self.vision_config)
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        config.num_hidden_layers = self.used_layers
        if self.vision_config["model_type"].startswith("siglip"):
            config.vision_use_head = False  # before transformers 5.20 not a field of the config, but obeyed
        return config

    def pretrained_key(self, name: str) -> str | None:
        """Return our name of a tensor of a whole or vision-only model; None for text parts, heads and layers not used."""
        if re.match(r"text_model\.|logit_|visual_projection\.|text_projection\.", name):
            return None
        name = name.removeprefix("vision_model.")
        layer = re.match(r"(?:encoder\.|model\.)?layers?\.(\d+)\.", name)
        if name.startswith((f"{self.family.final_norm}.", "head.")) or name == "embeddings.position_ids":
            return None
        return None if layer and int(layer[1]) >= self.used_layers else f"model.{name}"

    @property
    def used_layers(self) -> int:
        """Number of layers before the selected hidden state."""
        layers = int(self.vision_config["num_hidden_layers"])
        used = self.select_layer if self.select_layer >= 0 else layers + 1 + self.select_layer
        if not 0 < used <= layers:
            raise ModelError(f"select_layer {self.select_layer} is not one of the {layers} layers of {self.name!r}.")
        return used

    @classmethod
    def spec_from_pretrained(cls, folder: str, **settings: Any) -> TransformersVisionSpec:
        """Take the vision part of the config in a folder or under a hub name."""
        return cls(vision_config=vision_settings(folder), **settings)

    @classmethod
    def from_pretrained(cls, folder: str, **settings: Any) -> tuple[EncoderSpec, EncoderModule]:
        """Take config and weights from a folder or hub name; of a text-image model only the vision part."""
        spec = cls.spec_from_pretrained(folder, **settings)
        module = spec.build()
        assert isinstance(module, TransformersVisionEncoder)
        model, missing = load_pretrained(AutoModel, folder, config=spec.hf_config())
        encoder = type(module)(spec, model)
        check_found(encoder, missing, folder, "model.")
        return spec, encoder


def vision_settings(folder: str) -> dict[str, Any]:
    """Return the vision part of a model's config, complete, with its `model_type`; the text part is ignored.

    Args:
        folder: local folder or hub name.

    Raises:
        ModelError: if it cannot be read.
    """
    with translate_load_errors(
        f"The encoder {folder!r} cannot be loaded", "Give a folder with config.json and weights.", ModelError
    ):
        settings, _ = PreTrainedConfig.get_config_dict(folder)
    vision = settings.get("vision_config") or settings
    kind = vision.get("model_type") or f"{settings.get('model_type')}_vision_model"
    if kind not in CONFIG_MAPPING:  # whoever asked says what it takes
        return {**vision, "model_type": kind}
    values = {key: value for key, value in vision.items() if key != "model_type"}
    return AutoConfig.for_model(kind, **values).to_dict()


class TransformersVisionEncoder(EncoderModule):
    """Runs the vision transformer up to the selected layer."""

    def __init__(self, spec: TransformersVisionSpec, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        setattr(self.model, spec.family.final_norm, nn.Identity())
        drop_mask_token(self.model)
        self._name = spec.name
        self._drop = spec.num_prefix_tokens if spec.select_feature == "patch" else 0
        self._native_size = spec.input_size
        self._flag = spec.family.interpolates == "flag"

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, tokens, hidden_size)."""
        size = tuple(pixels.shape[-2:])
        options: dict[str, Any] = {"interpolate_pos_encoding": size != self._native_size} if self._flag else {}
        if size != self._native_size:
            log_interpolation(self._name, self._native_size, size)
        return self.model(pixel_values=pixels, **options).last_hidden_state[:, self._drop :]


def drop_mask_token(model: nn.Module) -> None:
    """Turn a mask token, which only pretraining uses, into a buffer: a weight that never has a gradient stops DDP."""
    for module in model.modules():
        token = getattr(module, "mask_token", None)
        if isinstance(token, nn.Parameter):
            del module.mask_token
            module.register_buffer("mask_token", token.detach())


for _name in sorted({family.encoder for family in FAMILIES.values()}):
    ENCODERS.add(_name, TransformersVisionSpec)
