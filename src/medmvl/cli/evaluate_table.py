"""The part of `medmvl evaluate` that works through an evaluation recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from medmvl.experiments.evaluation_recipe import EvaluationRecipe, ReadyBenchmark


@dataclass(frozen=True)
class PreparedTable:
    """An evaluation recipe whose data are converted and checked.

    Attributes:
        recipe: the table.
        ready: its benchmarks.
        controls: of the recipe and the command line.
    """

    recipe: EvaluationRecipe
    ready: list[ReadyBenchmark]
    controls: list[str]

    def run(self, evaluate: Callable[[ReadyBenchmark], None]) -> None:
        """Evaluate every benchmark; those that fail are named at the end."""
        from medmvl.experiments.evaluation_recipe import evaluate_table

        evaluate_table(self.recipe, self.ready, evaluate, typer.echo)


def prepare(
    recipe: Path, data_root: Path | None, names: list[str], controls: list[str], dry_run: bool
) -> PreparedTable | None:
    """Convert and check the data of a recipe; None after a dry run, which prints what would be predicted."""
    from medmvl.evaluation.controls import check_control_names
    from medmvl.experiments.evaluation_recipe import load_evaluation_recipe, plan_table, prepare_table
    from medmvl.remote import as_root
    from medmvl.training.shipped import find_recipe

    table = load_evaluation_recipe(find_recipe(recipe, evaluation=True))
    asked = list(dict.fromkeys([*table.controls, *controls]))
    check_control_names(dict.fromkeys(asked))
    ready = prepare_table(table, data_root or as_root(table.data_root), names, typer.echo)
    if dry_run:
        typer.echo(plan_table(ready, asked))
        return None
    return PreparedTable(table, ready, asked)
