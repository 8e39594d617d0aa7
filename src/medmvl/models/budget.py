"""Parameters and visual tokens of a model, computed from its config alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from medmvl.models.configuration import MedMVLConfig
from medmvl.models.contrastive import DualEncoder, DualEncoderConfig
from medmvl.models.contrastive.text import longest_text
from medmvl.models.modeling import MedMVLForConditionalGeneration
from medmvl.models.tower import count_visual_tokens


@dataclass(frozen=True, slots=True)
class Budget:
    """Size of a model.

    Attributes:
        parameters: part -> number of parameters.
        visual_tokens: modality -> LLM positions that one input takes.
        inputs: modality -> "size -> encoder grid -> connector grid", for display.
        max_positions: maximum sequence length of the LLM.
    """

    parameters: dict[str, int]
    visual_tokens: dict[str, int]
    inputs: dict[str, str]
    max_positions: int


def budget(config: MedMVLConfig) -> Budget:
    """Return parameters and visual tokens of a model without allocating a weight."""
    tokens, inputs = {}, {}
    for modality in config.towers:
        tower = config.tower(modality)
        size = "x".join(map(str, tower.input_size))
        tokens[modality] = count_visual_tokens(tower)
        inputs[modality] = f"{size} -> {tower.encoder_spec.grid(tower.input_size)} -> {tower.output_grid()}"
    positions = getattr(config.text_config, "max_position_embeddings", 0)
    return Budget(_parameters(lambda: MedMVLForConditionalGeneration(config)), tokens, inputs, positions)


def dual_budget(config: DualEncoderConfig) -> Budget:
    """Return the parameters of a dual encoder without allocating a weight; `max_positions` is the limit of its text encoder."""
    return Budget(_parameters(lambda: DualEncoder(config)), {}, {}, longest_text(config.text_config) or 0)


def _parameters(build: Callable[[], MedMVLForConditionalGeneration | DualEncoder]) -> dict[str, int]:
    with torch.device("meta"):
        parts = build().parts()
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def print_budget(size: Budget, console: Console | None = None, title: str = "Model budget") -> None:
    """Print a budget as a table."""
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("tokens per input", justify="right")
    table.add_column("input -> encoder grid -> connector grid")
    for name, count in size.parameters.items():
        modality = name.partition("_")[0] if name.endswith("_connector") else ""
        table.add_row(name, f"{count:,}", str(size.visual_tokens.get(modality, "")), size.inputs.get(modality, ""))
    table.add_row("total", f"{sum(size.parameters.values()):,}", "", f"text positions: {size.max_positions:,}")
    (console or Console(stderr=True)).print(table)
