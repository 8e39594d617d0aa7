"""SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786).

Its fixed-resolution checkpoints are SigLIP's architecture; the NaFlex ones take patches instead of images and interpolate
their position embeddings to any grid themselves.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor
from transformers import AutoModel

from medmvl.models.encoders.encoder import ENCODERS, EncoderModule
from medmvl.models.encoders.transformers_vision import TransformersVisionEncoder, TransformersVisionSpec
from medmvl.models.grid_rules import FAMILIES, VisionFamily
from medmvl.pretrained import build_from_config

NAFLEX = "siglip2_vision_model"


@ENCODERS.register("siglip2")
class Siglip2Spec(TransformersVisionSpec):
    """SigLIP 2, fixed-resolution or NaFlex; the vision config says which."""

    @model_validator(mode="after")
    def _of_the_family(self) -> Siglip2Spec:
        self.check_model_type({NAFLEX, "siglip_vision_model"})
        return self

    @property
    def family(self) -> VisionFamily:
        """The family of the model type."""
        return FAMILIES["siglip_vision_model"]

    @property
    def is_naflex(self) -> bool:
        """Whether the model takes patches."""
        return self.vision_config["model_type"] == NAFLEX

    @property
    def input_size(self) -> tuple[int, ...]:
        """Native (H, W); for NaFlex the square that has the trained number of patches."""
        if not self.is_naflex:
            return super().input_size
        side = math.isqrt(int(self.vision_config["num_patches"])) * self.patch
        return side, side

    def build(self) -> EncoderModule:
        """Return the module with fresh weights."""
        if not self.is_naflex:
            return super().build()
        return NaFlexEncoder(self, build_from_config(AutoModel, self.hf_config()))


class NaFlexEncoder(TransformersVisionEncoder):
    """Cuts images into patches, which is what the model takes."""

    def __init__(self, spec: TransformersVisionSpec, model: Any) -> None:
        super().__init__(spec, model)
        self._patch = spec.patch

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, tokens, hidden_size)."""
        side = self._patch
        split = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (N, C, h, side, w, side)
        patches = split.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (N, h*w, side*side*C)
        shapes = torch.tensor([[split.shape[2], split.shape[4]]] * len(pixels), device=pixels.device)
        mask = torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device)
        output = self.model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)
        return output.last_hidden_state
