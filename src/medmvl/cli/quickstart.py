"""`medmvl quickstart`: the main job end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of the patients, the weights and the order.", min=0)] = 0,
    scale: Annotated[
        float, typer.Option(help="Share of patients and epochs, for a quick try; below 1 the accuracy is lower.")
    ] = 1.0,
) -> None:
    """Draw synthetic patients, train a model with both towers, score it on held-out ones, write a report."""
    from medmvl.experiments.quickstart import quickstart as run

    run(out, seed, scale=scale)
