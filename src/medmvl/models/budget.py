"""What a model will cost, computed from configs alone, before anything heavy is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from medmvl.models.configuration import MedMVLConfig
from medmvl.models.contrastive import DualEncoder, DualEncoderConfig
from medmvl.models.contrastive.text import longest_text
from medmvl.models.modeling import MedMVLForConditionalGeneration, parts
from medmvl.models.visual_tokens import count_visual_tokens


@dataclass(frozen=True, slots=True)
class Budget:
    """The price of a model.

    Attributes:
        parameters: part -> number of parameters.
        visual_tokens: modality -> LLM positions that one input takes.
        inputs: modality -> "size -> encoder grid -> connector grid", for reading.
        max_positions: positions the LLM has.
    """

    parameters: dict[str, int]
    visual_tokens: dict[str, int]
    inputs: dict[str, str]
    max_positions: int

    def fits(self, text_tokens: int, images: int = 0, volumes: int = 0) -> bool:
        """Say whether a record of so many text tokens, images and volumes fits the LLM's positions."""
        return self.length(text_tokens, images, volumes) <= self.max_positions

    def length(self, text_tokens: int, images: int = 0, volumes: int = 0) -> int:
        """Return the positions such a record takes."""
        tokens = self.visual_tokens
        return text_tokens + images * tokens.get("image", 0) + volumes * tokens.get("volume", 0)


def budget(config: MedMVLConfig) -> Budget:
    """Count parameters and visual tokens without allocating a weight."""
    with torch.device("meta"):
        model = MedMVLForConditionalGeneration(config)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts(model).items()}
    tokens, inputs = {}, {}
    for modality in config.towers:
        tower = config.tower(modality)
        size = "x".join(map(str, tower.input_size))
        tokens[modality] = count_visual_tokens(tower)
        inputs[modality] = f"{size} -> {tower.encoder_spec.grid(tower.input_size)} -> {tower.output_grid()}"
    positions = getattr(config.text_config, "max_position_embeddings", 0)
    return Budget(counts, tokens, inputs, positions)


def dual_budget(config: DualEncoderConfig) -> Budget:
    """Count the parameters of a dual encoder without allocating a weight; `max_positions` are those of its texts."""
    with torch.device("meta"):
        dual = DualEncoder(config)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in dual.parts().items()}
    return Budget(counts, {}, {}, longest_text(config.text_config) or 0)


def print_budget(price: Budget, console: Console | None = None, title: str = "Model budget") -> None:
    """Show a budget as a table."""
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("tokens per input", justify="right")
    table.add_column("input -> encoder grid -> connector grid")
    for name, count in price.parameters.items():
        modality = name.partition("_")[0] if name.endswith("_connector") else ""
        table.add_row(name, f"{count:,}", str(price.visual_tokens.get(modality, "")), price.inputs.get(modality, ""))
    table.add_row("total", f"{sum(price.parameters.values()):,}", "", f"text positions: {price.max_positions:,}")
    (console or Console(stderr=True)).print(table)
