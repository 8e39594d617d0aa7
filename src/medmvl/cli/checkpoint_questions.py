"""`medmvl checkpoint questions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def questions(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint folder.")]) -> None:
    """Print the questions that a model was trained on most, in their own words, with the answers of closed ones.

    A small model understands few other words.
    """
    from medmvl.errors import CheckpointError, printable
    from medmvl.files import existing
    from medmvl.processing.stored_prompts import FILE, read_prompts

    tasks = read_prompts(existing(folder, "checkpoint folder")).tasks
    if not tasks:
        raise CheckpointError(
            f"{folder} stores no questions ({FILE}): it was not trained by medmvl, or no question occurs often in its data."
        )
    for task in tasks:
        typer.echo(printable(f"{task.task} ({task.modality})"))
        for prompt in task.prompts:
            options = f"  [{' | '.join(prompt.options)}]" if prompt.options else ""
            typer.echo(printable(f"  {prompt.text}{options}"))
