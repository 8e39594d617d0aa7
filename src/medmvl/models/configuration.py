"""Configurations with complete sub-configs, so that a saved folder needs nothing but itself."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from medmvl.models.tower import MODALITIES, TowerSpec

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:  # before transformers 5.20
    SubConfigSpec = None


class TowersConfig(PreTrainedConfig):
    """Base of our configurations: a text model and towers.

    Args:
        text_config: config of the text model, or its dictionary with `model_type`.
        towers: modality ("image", "volume") -> settings of a `TowerSpec`.
    """

    #: Type of a text config that does not name its own.
    default_text_type: ClassVar[str] = "llama"
    if SubConfigSpec is None:
        sub_configs = {"text_config": AutoConfig}
    else:
        sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    text_config: Any = None  # a PreTrainedConfig once initialized
    towers: Any = None  # modality -> settings, a dict once initialized

    def __post_init__(self, **kwargs: Any) -> None:
        """Complete the settings and refuse unknown modalities."""
        if self.text_config is None or isinstance(self.text_config, dict):  # transformers before 5.20 leaves it so
            settings = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(settings.pop("model_type", self.default_text_type), **settings)
        super().__post_init__(**kwargs)
        self.towers = {
            name: TowerSpec.model_validate(settings).to_dict() for name, settings in (self.towers or {}).items()
        }
        unknown = set(self.towers) - set(MODALITIES)
        if unknown:
            raise ValueError(f"Unknown modality {sorted(unknown)}; towers are {list(MODALITIES)}.")

    def tower(self, modality: str) -> TowerSpec:
        """Return the spec of a tower."""
        return TowerSpec.model_validate((self.towers or {})[modality])


class MedMVLConfig(TowersConfig):
    """Configuration of an LLM and up to two towers.

    Args:
        text_config: config of the LLM (a causal LM of transformers), or its dictionary with `model_type`.
        towers: modality ("image", "volume") -> settings of a `TowerSpec`.
        image_token_id: id of the `<image>` placeholder; may be beyond the LLM's vocabulary.
        volume_token_id: id of the `<image3d>` placeholder; may be beyond the LLM's vocabulary.
    """

    model_type = "medmvl"

    image_token_id: int | None = None
    volume_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Complete the settings; the LLM alone decides whether its embeddings are tied."""
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))

    def placeholder_id(self, modality: str) -> int | None:
        """Return the id of a modality's placeholder token."""
        return {"image": self.image_token_id, "volume": self.volume_token_id}[modality]
