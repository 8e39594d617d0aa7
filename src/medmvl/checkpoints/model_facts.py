"""What the config.json of one of our models says about its LLM and towers.

A config as our models write it is read as it is, which takes milliseconds. Any other one, such as an edited config that
leaves settings to their defaults, is completed by the config classes of transformers, whose import takes seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from medmvl.checkpoints.vllm_cpu import vllm_cpu_note
from medmvl.errors import ModelError
from medmvl.models.grid import Grid
from medmvl.models.stored_towers import stored_grids

_LLM, _HEAD = "language_model.", "language_model.lm_head.weight"
#: What a supported LLM has besides its decoder: the names by which it can be told whether the head is tied.
_HEAD_NAMES = {_HEAD, "language_model.lm_head.bias"}


@dataclass(frozen=True)
class TowerFacts:
    """A tower: names of its parts, its input size, and its grids before and after the pooling."""

    encoder: str
    size: tuple[int, ...]
    grid: Grid
    pooling: str
    output: Grid
    projector: str

    def __str__(self) -> str:
        return (
            f"{self.encoder} at {'x'.join(map(str, self.size))} -> {self.grid} -> {self.pooling} -> {self.output} "
            f"({self.output.tokens} tokens), {self.projector}"
        )


@dataclass(frozen=True)
class ModelFacts:
    """An LLM and its towers.

    Attributes:
        text: the LLM's config, or an object with its settings as attributes.
        tied: whether the head has no weight of its own.
        towers: by modality.
    """

    text: Any
    tied: bool
    towers: dict[str, TowerFacts]

    def lines(self) -> dict[str, str]:
        """Return name -> text, one line each."""
        text, tied = self.text, "tied" if self.tied else "untied"
        lines = {
            "LLM": f"{text.model_type}, width {text.hidden_size}, {text.num_hidden_layers} layers, "
            f"vocabulary {text.vocab_size}, head {tied}"
        }
        if note := vllm_cpu_note(text):
            lines["vLLM on a CPU"] = note
        if self.tied != bool(text.tie_word_embeddings):
            lines["head"] = f"the config says {'untied' if self.tied else 'tied'}; the weights decide"
        return lines | {f"{modality} tower": str(tower) for modality, tower in self.towers.items()}


def model_facts(config: Mapping[str, Any], names: Collection[str]) -> ModelFacts:
    """Return the facts of a model.

    Args:
        config: its config.json.
        names: of its tensors.
    """
    return stored_facts(config, names) or completed_facts(config, names)


def stored_facts(config: Mapping[str, Any], names: Collection[str]) -> ModelFacts | None:
    """Return the facts of a config that states all of them, without torch; None for any other one."""
    try:
        text = SimpleNamespace(**config["text_config"])
        sizes = (text.hidden_size, text.num_hidden_layers, text.vocab_size, text.num_attention_heads)
        if not all(type(size) is int for size in sizes) or type(text.tie_word_embeddings) is not bool:
            return None
        if not {"image", "volume"}.issuperset(config["towers"]) or not isinstance(text.model_type, str):
            return None
        towers = {modality: _stored_tower(tower) for modality, tower in config["towers"].items()}
        return ModelFacts(text, _stored_tie(names), towers)
    except (KeyError, TypeError, ValueError, AttributeError, ModelError):
        return None


def _stored_tower(settings: Mapping[str, Any]) -> TowerFacts:
    size, grid, output = stored_grids(settings)
    connector = settings["connector"]
    return TowerFacts(
        settings["encoder"]["name"], size, grid, connector["pooling"]["name"], output, connector["projector"]
    )


def _stored_tie(names: Collection[str]) -> bool:
    """Return whether the head is tied; raise ValueError if the LLM may call its head otherwise."""
    outside = {name for name in names if name.startswith(_LLM) and not name.startswith(f"{_LLM}model.")}
    if not outside <= _HEAD_NAMES:
        raise ValueError(outside)
    return _HEAD not in outside


def completed_facts(config: Mapping[str, Any], names: Collection[str]) -> ModelFacts:
    """Return the facts of any config, checked and completed by its class; imports torch and transformers."""
    from medmvl.models.configuration import MedMVLConfig
    from medmvl.models.weight_writer import head_name

    full = MedMVLConfig(**config)
    towers = {}
    for modality in full.towers:
        tower = full.tower(modality)
        grid = tower.encoder_spec.grid(tower.input_size)
        pooling, projector = tower.connector.pooling["name"], tower.connector.projector
        encoder = tower.encoder["name"]
        towers[modality] = TowerFacts(encoder, tower.input_size, grid, pooling, tower.output_grid(), projector)
    return ModelFacts(full.text_config, head_name(full) not in names, towers)
