"""The `model` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from medmvl.training.recipe.base import Count, Section


class TokenizerSection(Section):
    """A tokenizer trained on the recipe's own texts, for models with random weights."""

    vocab_size: Annotated[int, Field(ge=300)] = 2048
    """Size of the byte-level BPE vocabulary, special tokens included; at least 300 (256 bytes and the specials)."""


class LLMSection(Section):
    """The language model."""

    init_from: str | None = None
    """Folder or hub name of a causal LM with its tokenizer; weights are loaded. Give this or `config`."""
    config: dict[str, Any] | None = None
    """Settings of a causal LM that starts with random weights, with `model_type`; `vocab_size` follows the tokenizer."""
    tokenizer: TokenizerSection | str | None = None
    """Folder or hub name of a tokenizer, or settings to train one; default: the one in `init_from`, or a trained one."""
    max_length: Count = 2048
    """Maximum number of tokens of a sample, visual ones included; longer samples lose early turns, or are refused."""

    @model_validator(mode="after")
    def _one_source(self) -> LLMSection:
        if (self.init_from is None) == (self.config is None):
            raise ValueError("give either `init_from` (a folder or hub name) or `config` (random weights), not both")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs `model_type`, such as qwen2, llama or phi3")
        return self


class TowerSection(Section):
    """An encoder and its connector, for images or for volumes."""

    encoder: dict[str, Any]
    """Settings of the encoder with its `name` (`medmvl list encoders`). `init_from` loads weights from a folder or hub name;
    from a MedM-VL checkpoint it takes the encoder of that name with the processor it was trained with."""
    connector: str | dict[str, Any] = "mlp2x_gelu"
    """A projector's name, or {pooling: ..., projector: ...} (`medmvl list connectors`)."""
    size: tuple[int, ...] | None = None
    """Input size, (H, W) or (D, H, W); default: the size the encoder was made for."""
    geometry: str | dict[str, Any] | None = None
    """Volumes only: preprocessing of a scan (`medmvl list geometries`), as a name or {name, ...}."""

    @model_validator(mode="after")
    def _named_encoder(self) -> TowerSection:
        if "name" not in self.encoder:
            raise ValueError("`encoder` needs its `name`, such as siglip, clip, slicewise or vit3d")
        return self


class ModelSection(Section):
    """The model: a checkpoint, or parts. Without an LLM it is an encoder alone, for contrastive stages."""

    from_: str | None = Field(default=None, alias="from")
    """Folder of a checkpoint; give this or `llm` with towers."""
    llm: LLMSection | None = None
    """The language model; not needed if all stages are contrastive."""
    image: TowerSection | None = None
    """The tower for 2D images."""
    volume: TowerSection | None = None
    """The tower for 3D volumes."""
    template: str | None = None
    """Chat template (`medmvl list templates`); default: the one of the LLM's family."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelSection:
        if self.from_ is not None and self.llm is not None:
            raise ValueError("give either `from` (a checkpoint folder) or `llm` (and towers), not both")
        if self.from_ is not None and (self.image or self.volume):
            raise ValueError("a model `from` a checkpoint brings its towers; remove `image` and `volume`")
        if not (self.from_ or self.llm or self.image or self.volume):
            raise ValueError("give `from` (a checkpoint folder), or `llm` (and towers)")
        return self

    @property
    def encoder_only(self) -> bool:
        """Whether the model is an encoder without an LLM."""
        return self.from_ is None and self.llm is None

    def part_names(self) -> list[str]:
        """Return the names of the parts; empty if they are known only after reading the checkpoint."""
        if self.from_ is not None:
            return []
        towers = [name for name in ("image", "volume") if getattr(self, name) is not None]
        kinds = ("encoder",) if self.encoder_only else ("encoder", "connector")
        return [*([] if self.encoder_only else ["llm"]), *(f"{tower}_{kind}" for tower in towers for kind in kinds)]
