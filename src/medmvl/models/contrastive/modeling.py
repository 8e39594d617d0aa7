"""Dual encoder of images (or volumes) and texts in one space (CLIP, Radford et al. 2021, arXiv 2103.00020).

Shapes: N pairs, T text tokens, t tokens of the image or volume encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers.modeling_outputs import ModelOutput

from medmvl.errors import ModelError
from medmvl.models.base_model import StrictPreTrainedModel
from medmvl.models.connectors.poolings import AttentionPooling
from medmvl.models.contrastive.configuration import ContrastSpec, DualEncoderConfig
from medmvl.models.contrastive.losses import MAX_SCALE, log_scale_of
from medmvl.models.contrastive.text import fresh_text_encoder, pool_text
from medmvl.models.encoders import EncoderModule


@dataclass
class DualEncoderOutput(ModelOutput):
    """Output of a dual encoder.

    Attributes:
        visual: (N, dim) float32, of length 1.
        texts: (N, dim) float32, of length 1.
        log_scale: scalar, the logarithm of 1 / temperature.
        bias: scalar of the sigmoid loss, or None.
    """

    visual: Tensor | None = None
    texts: Tensor | None = None
    log_scale: Tensor | None = None
    bias: Tensor | None = None


class ContrastHead(nn.Module):
    """Pooling and projections between the two encoders and the loss.

    Images and volumes: norm of every token (encoders here end before their last norm), pooling, projection without a
    bias, length 1. Texts: projection without a bias, length 1.
    """

    def __init__(self, spec: ContrastSpec, width: int, text_width: int) -> None:
        super().__init__()
        if spec.pooling == "attention" and width % spec.heads:
            raise ModelError(
                f"The attention pooling has {spec.heads} heads, which do not divide the encoder's width {width}. Set "
                "contrastive.heads to a divisor."
            )
        self.norm = nn.LayerNorm(width)
        self.pool = AttentionPooling(width, 1, spec.heads) if spec.pooling == "attention" else None
        self.project = nn.Linear(width, spec.dim, bias=False)
        self.project_text = nn.Linear(text_width, spec.dim, bias=False)
        nn.init.normal_(self.project.weight, std=width**-0.5)  # as CLIP's projections
        nn.init.normal_(self.project_text.weight, std=text_width**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(log_scale_of(spec.temperature)))
        self.bias = nn.Parameter(torch.tensor(float(spec.bias))) if spec.loss == "siglip" else None

    def visual(self, tokens: Tensor) -> Tensor:
        """(N, t, width) -> (N, dim)."""
        tokens = self.norm(tokens.to(self.norm.weight.dtype))
        pooled = tokens.mean(1) if self.pool is None else self.pool(tokens)[:, 0]
        return normalize(self.project(pooled).float(), dim=-1)

    def texts(self, pooled: Tensor) -> Tensor:
        """(N, text width) -> (N, dim)."""
        return normalize(self.project_text(pooled.to(self.project_text.weight.dtype)).float(), dim=-1)


class DualEncoder(StrictPreTrainedModel):
    """An encoder of one modality, a text encoder, and the head that joins them."""

    config_class = DualEncoderConfig
    main_input_name = "pixels"

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config)
        encoder = config.tower(config.modality).encoder_spec
        # Named as in a model with an LLM, so that the encoder's weights have the same names in both kinds of folder.
        self.towers = nn.ModuleDict({config.modality: nn.ModuleDict({"encoder": encoder.build()})})
        self.text_encoder = fresh_text_encoder(config.text_config, config.spec.text_pooling)
        self.head = ContrastHead(config.spec, encoder.hidden_size, config.text_config.hidden_size)
        self.post_init()

    @property
    def encoder(self) -> EncoderModule:
        """The encoder of images or volumes."""
        tower = self.towers[self.config.modality]
        assert isinstance(tower, nn.ModuleDict)
        encoder = tower["encoder"]
        assert isinstance(encoder, EncoderModule)
        return encoder

    def use_encoder(self, encoder: EncoderModule) -> None:
        """Replace the encoder by another of the same settings."""
        tower = self.towers[self.config.modality]
        assert isinstance(tower, nn.ModuleDict)
        tower["encoder"] = encoder

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts by name: `image_encoder` or `volume_encoder`, `text_encoder`, `head`."""
        return {f"{self.config.modality}_encoder": self.encoder, "text_encoder": self.text_encoder, "head": self.head}

    def encode_visual(self, pixels: Tensor) -> Tensor:
        """(N, C, [D,] H, W) -> (N, dim) float32, of length 1."""
        return self.head.visual(self.encoder(pixels.to(next(self.encoder.parameters()).dtype)))

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(N, T) -> (N, dim) float32, of length 1."""
        return self.head.texts(pool_text(self.text_encoder, input_ids, attention_mask, self.config.spec.text_pooling))

    def forward(
        self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> DualEncoderOutput:
        """Encode pairs; the loss needs those of all devices and is not made here.

        Args:
            pixels: (N, C, H, W) or (N, C, D, H, W) float, normalized as the processor does.
            input_ids: (N, T) int64.
            attention_mask: (N, T), 0 where padded.
        """
        # Times one, because distributed training finds trained weights in computed outputs only, not in returned parameters.
        bias = None if self.head.bias is None else self.head.bias * 1.0
        visual, texts = self.encode_visual(pixels), self.encode_texts(input_ids, attention_mask)
        return DualEncoderOutput(visual, texts, self.head.log_scale * 1.0, bias)

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Keep 1 / temperature at 100 or below, as CLIP does."""
        self.head.log_scale.clamp_(max=math.log(MAX_SCALE))
