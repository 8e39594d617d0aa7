"""`medmvl data check`: every fault of a data file at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medmvl.data.sample import Sample


def check(
    file: Annotated[Path, typer.Argument(help="JSON array, JSON Lines or Parquet file of records.")],
    image_root: Annotated[
        Path | None, typer.Option(help="Folder of the images; the file's own folder by default.")
    ] = None,
    volume_root: Annotated[
        Path | None, typer.Option(help="Folder of the volumes; the file's own folder by default.")
    ] = None,
    read: Annotated[bool, typer.Option(help="Also decode every image and volume.")] = True,
) -> None:
    """List all faults of a data file; exit status 2 if there are any.

    Records that can be asked but not trained on, since nothing in them is an answer, are counted and are no fault.
    """
    from rich.console import Console
    from rich.progress import Progress

    from medmvl.data.check import check_records

    unanswered = 0

    def count_one(sample: Sample | None) -> None:
        nonlocal unanswered
        unanswered += sample is not None and not sample.answered
        progress.advance(task)

    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("records", total=None)
        faults = check_records(file, image_root, volume_root, read_media=read, on_record=count_one)
        count = int(progress.tasks[task].completed)
    for fault in faults:
        typer.echo(fault.message)
    if faults:
        records = len({fault.where for fault in faults})
        typer.echo(f"{file}: {len(faults)} fault(s) in {records} of {count} record(s).", err=True)
        raise typer.Exit(2)
    typer.echo(f"{file}: {count} record(s), no fault.")
    if unanswered:
        typer.echo(f"{unanswered} of them hold no answer: they can be asked, not trained on or scored.")
