"""The configuration of a dual encoder: what an encoder is pretrained as, and what is kept to go on with it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from medmvl.models.contrastive.losses import FIRST_BIAS, LossName
from medmvl.models.tower import MODALITIES, TowerSpec


class ContrastSpec(BaseModel):
    """How features become one vector, and how vectors are compared.

    Attributes:
        loss: "clip" or "siglip", see `medmvl.models.contrastive.losses`.
        pooling: of the encoder's tokens: their mean, or a learned query that attends to them.
        heads: of that attention; must divide the encoder's width.
        dim: width of the common space.
        text_pooling: of the text encoder's tokens: their mean, the first one (BERT's [CLS]), or the model's own
            (`pooler_output`: CLIP's end token, SigLIP's last one).
        temperature: the first one; 1 / temperature is learned.
        bias: the first one of the sigmoid loss, learned as well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossName = "clip"
    pooling: Literal["mean", "attention"] = "mean"
    heads: int = 8
    dim: int = 512
    text_pooling: Literal["mean", "first", "own"] = "mean"
    temperature: float = Field(default=0.07, gt=0)
    bias: float = FIRST_BIAS


class DualEncoderConfig(PreTrainedConfig):
    """An encoder of images or volumes and one of texts.

    Args:
        text_config: config of the text encoder (any of transformers' that `AutoModel` knows), or its dictionary.
        towers: modality -> `{"encoder": ..., "size": ...}`, one of them; written as in a model's own config, so that an
            encoder is taken out of either kind of folder in the same way.
        contrast: settings of a `ContrastSpec`.
    """

    model_type = "medmvl-dual-encoder"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}

    text_config: Any = None  # a PreTrainedConfig once initialised
    towers: Any = None  # modality -> settings, a dict once initialised
    contrast: Any = None  # settings of a ContrastSpec, a dict once initialised

    def __post_init__(self, **kwargs: Any) -> None:
        """Complete the settings and refuse anything but one known modality."""
        super().__post_init__(**kwargs)
        self.towers = {
            name: TowerSpec.model_validate(settings).to_dict() for name, settings in (self.towers or {}).items()
        }
        self.contrast = ContrastSpec.model_validate(self.contrast or {}).model_dump(mode="json")
        self.tie_word_embeddings = False
        if self.towers and (len(self.towers) != 1 or self.modality not in MODALITIES):
            raise ValueError(f"A dual encoder has one tower of {list(MODALITIES)}, not {sorted(self.towers)}.")

    @property
    def modality(self) -> str:
        """ "image" or "volume"."""
        return next(iter(self.towers))

    @property
    def spec(self) -> ContrastSpec:
        """The settings of pooling, projection and loss."""
        return ContrastSpec.model_validate(self.contrast)

    def tower(self, modality: str) -> TowerSpec:
        """Return the spec of the tower; its connector has no meaning here."""
        return TowerSpec.model_validate(self.towers[modality])
