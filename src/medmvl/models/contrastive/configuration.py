"""Configuration of a dual encoder for contrastive pretraining."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from medmvl.models.configuration import TowersConfig
from medmvl.models.contrastive.losses import FIRST_BIAS, LossName
from medmvl.models.tower import MODALITIES


class ContrastSpec(BaseModel):
    """Settings of the pooling, the projection and the loss of a dual encoder.

    Attributes:
        loss: "clip" or "siglip", see `medmvl.models.contrastive.losses`.
        pooling: of the encoder's tokens: their mean, or a learned query that attends to them.
        heads: of that attention; must divide the encoder's width.
        dim: width of the common space.
        text_pooling: of the text encoder's tokens: their mean, the first one (BERT's [CLS]), or the model's own
            (`pooler_output`: CLIP's end token, SigLIP's last one).
        temperature: initial value; 1 / temperature is learned.
        bias: initial bias of the sigmoid loss; it is learned as well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossName = "clip"
    pooling: Literal["mean", "attention"] = "mean"
    heads: int = 8
    dim: int = 512
    text_pooling: Literal["mean", "first", "own"] = "mean"
    temperature: float = Field(default=0.07, gt=0)
    bias: float = FIRST_BIAS


class DualEncoderConfig(TowersConfig):
    """Configuration of a dual encoder: an encoder of images or volumes and one of texts.

    Args:
        text_config: config of the text encoder (any of transformers' that `AutoModel` knows), or its dictionary.
        towers: modality -> `{"encoder": ..., "size": ...}`, one of them; written as in a model's own config, so that an
            encoder is taken out of either kind of folder in the same way.
        contrast: settings of a `ContrastSpec`.
    """

    model_type = "medmvl-dual-encoder"
    default_text_type: ClassVar[str] = "bert"

    contrast: Any = None  # settings of a ContrastSpec, a dict once initialized

    def __post_init__(self, **kwargs: Any) -> None:
        """Complete the settings and refuse more than one modality."""
        super().__post_init__(**kwargs)
        self.contrast = ContrastSpec.model_validate(self.contrast or {}).model_dump(mode="json")
        self.tie_word_embeddings = False
        if len(self.towers) > 1:
            raise ValueError(f"A dual encoder has one tower of {list(MODALITIES)}, not {sorted(self.towers)}.")

    @property
    def modality(self) -> str:
        """ "image" or "volume"."""
        return next(iter(self.towers))

    @property
    def spec(self) -> ContrastSpec:
        """The settings of pooling, projection and loss."""
        return ContrastSpec.model_validate(self.contrast)
