"""`medmvl train`: run a recipe."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

#: Exit status of a process that SIGTERM ended, as shells report it.
INTERRUPTED = 128 + signal.SIGTERM


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file, or name of a shipped recipe (medmvl list recipes).")],
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/<recipe name>.")] = None,
    stage: Annotated[str | None, typer.Option(help="Run only this stage.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: key.path=value; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in the run folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Check recipe, records, images and volumes, and print the cost; train nothing.")
    ] = False,
    read: Annotated[
        bool, typer.Option(help="With --dry-run: read images and volumes, for a minute at most; else only find them.")
    ] = True,
    hardware: Annotated[
        str | None, typer.Option(help="With --dry-run: the machine to estimate for, such as '2xA100-80GB'.")
    ] = None,
) -> None:
    """Train a model by a recipe; on SIGTERM it saves and exits with status 143."""
    from medmvl.training.shipped import find_recipe

    recipe = find_recipe(recipe)
    if dry_run:
        from medmvl.training.dry_run import dry_run as run_dry

        run_dry(recipe, set_ or (), hardware=hardware, read=read)
        return
    from medmvl.training.run import TrainingInterruptedError
    from medmvl.training.run import train as run

    try:
        folder = run(recipe, out, resume=resume, stage=stage, overrides=set_ or ())
    except TrainingInterruptedError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(INTERRUPTED) from error
    typer.echo(f"Done: {folder}")
