"""The model's configuration: complete sub-configs, so that a saved folder needs nothing but itself."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from medmvl.models.tower import MODALITIES, TowerSpec


class MedMVLConfig(PreTrainedConfig):
    """An LLM and up to two towers.

    Args:
        text_config: config of the LLM (any causal LM of transformers), or its dictionary with `model_type`.
        towers: modality ("image", "volume") -> settings of a `TowerSpec`.
        image_token_id: id of the `<image>` placeholder; may lie beyond the LLM's vocabulary.
        volume_token_id: id of the `<image3d>` placeholder; may lie beyond the LLM's vocabulary.
    """

    model_type = "medmvl"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    text_config: Any = None  # a PreTrainedConfig once initialised
    towers: Any = None  # modality -> settings, a dict once initialised
    image_token_id: int | None = None
    volume_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Complete the towers' settings and refuse unknown modalities."""
        super().__post_init__(**kwargs)
        self.towers = {
            name: TowerSpec.model_validate(settings).to_dict() for name, settings in (self.towers or {}).items()
        }
        unknown = set(self.towers) - set(MODALITIES)
        if unknown:
            raise ValueError(f"Unknown modality {sorted(unknown)}; towers are {list(MODALITIES)}.")
        # Tying is the LLM's affair: the wrapper must neither tie nor untie behind its back.
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))

    def tower(self, modality: str) -> TowerSpec:
        """Return the spec of a tower."""
        return TowerSpec.model_validate((self.towers or {})[modality])

    def placeholder_id(self, modality: str) -> int | None:
        """Return the id of a modality's placeholder token."""
        return {"image": self.image_token_id, "volume": self.volume_token_id}[modality]
