"""The dual encoder: media and texts in one space (CLIP, Radford et al. 2021, arXiv 2103.00020).

Shapes: N pairs, T text tokens, t tokens of the media encoder.
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
from medmvl.models.connectors.poolings import AttentionPooling
from medmvl.models.contrastive.configuration import ContrastSpec, DualEncoderConfig
from medmvl.models.contrastive.losses import MAX_SCALE, log_scale_of
from medmvl.models.contrastive.text import fresh_text_encoder, pool_text
from medmvl.models.encoders import EncoderModule
from medmvl.models.strict import StrictModel


@dataclass
class DualEncoderOutput(ModelOutput):
    """What a dual encoder returns.

    Attributes:
        media: (N, dim) float32, of length 1.
        texts: (N, dim) float32, of length 1.
        log_scale: scalar, the logarithm of 1 / temperature.
        bias: scalar of the sigmoid loss, or None.
    """

    media: Tensor | None = None
    texts: Tensor | None = None
    log_scale: Tensor | None = None
    bias: Tensor | None = None


class ContrastHead(nn.Module):
    """Everything between the two encoders and the loss.

    Media: norm of every token (encoders here end before their last norm), pooling, projection without a bias, length 1.
    Texts: projection without a bias, length 1.
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

    def media(self, tokens: Tensor) -> Tensor:
        """(N, t, width) -> (N, dim)."""
        tokens = self.norm(tokens.to(self.norm.weight.dtype))
        pooled = tokens.mean(1) if self.pool is None else self.pool(tokens)[:, 0]
        return normalize(self.project(pooled).float(), dim=-1)

    def texts(self, pooled: Tensor) -> Tensor:
        """(N, text width) -> (N, dim)."""
        return normalize(self.project_text(pooled.to(self.project_text.weight.dtype)).float(), dim=-1)


class DualEncoder(StrictModel):
    """An encoder of one modality, a text encoder, and the head that joins them."""

    config_class = DualEncoderConfig
    base_model_prefix = ""
    main_input_name = "pixels"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config)
        encoder = config.tower(config.modality).encoder_spec
        # Named as in a model with an LLM, so that the encoder's weights have the same names in both kinds of folder.
        self.towers = nn.ModuleDict({config.modality: nn.ModuleDict({"encoder": encoder.build()})})
        self.text_encoder = fresh_text_encoder(config.text_config, config.spec.text_pooling)
        self.head = ContrastHead(config.spec, encoder.hidden_size, config.text_config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave fresh weights as the parts made them: each part owns its initialisation."""

    @property
    def encoder(self) -> EncoderModule:
        """The encoder of media."""
        tower = self.towers[self.config.modality]
        assert isinstance(tower, nn.ModuleDict)
        encoder = tower["encoder"]
        assert isinstance(encoder, EncoderModule)
        return encoder

    def use_encoder(self, encoder: EncoderModule) -> None:
        """Put another encoder of the same settings in."""
        tower = self.towers[self.config.modality]
        assert isinstance(tower, nn.ModuleDict)
        tower["encoder"] = encoder

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts by name: `image_encoder` or `volume_encoder`, `text_encoder`, `head`."""
        return {f"{self.config.modality}_encoder": self.encoder, "text_encoder": self.text_encoder, "head": self.head}

    def encode_media(self, pixels: Tensor) -> Tensor:
        """(N, C, [D,] H, W) -> (N, dim) float32, of length 1."""
        return self.head.media(self.encoder(pixels.to(next(self.encoder.parameters()).dtype)))

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(N, T) -> (N, dim) float32, of length 1."""
        return self.head.texts(pool_text(self.text_encoder, input_ids, attention_mask, self.config.spec.text_pooling))

    def forward(
        self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> DualEncoderOutput:
        """Encode pairs; the loss needs those of all devices and is not made here.

        Args:
            pixels: (N, C, H, W) or (N, C, D, H, W) float, normalised as the processor does.
            input_ids: (N, T) int64.
            attention_mask: (N, T), 0 where padded.
        """
        # Times one: distributed training looks for trained weights in what forward makes, not among what it hands on.
        bias = None if self.head.bias is None else self.head.bias * 1.0
        media, texts = self.encode_media(pixels), self.encode_texts(input_ids, attention_mask)
        return DualEncoderOutput(media, texts, self.head.log_scale * 1.0, bias)

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Keep 1 / temperature at 100 or below, as CLIP does."""
        self.head.log_scale.clamp_(max=math.log(MAX_SCALE))
