"""`medmvl data show`: look at a data file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def show(
    file: Annotated[Path, typer.Argument(help="JSON array, JSON Lines or Parquet file of records.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder or recipe (.yaml): also show what it sees of a volume.")
    ] = None,
    geometry: Annotated[str | None, typer.Option(help="Instead of --model: name or .yaml of a geometry.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder of the images; default: the data file's own.")] = None,
    volume_root: Annotated[
        Path | None, typer.Option(help="Folder of the volumes; default: the data file's own.")
    ] = None,
    records: Annotated[int, typer.Option(help="Number of records shown, from the first on.", min=1)] = 12,
    units: Annotated[Literal["HU", "arbitrary"] | None, typer.Option(help="Units, where files do not tell.")] = None,
    series: Annotated[
        str | None, typer.Option(help="Which DICOM series of a folder: largest, thinnest, axial ...")
    ] = None,
    gaps: Annotated[Literal["refuse", "fill", "keep"], typer.Option(help="Missing DICOM slices.")] = "refuse",
) -> None:
    """Write an HTML contact sheet: slices in three planes with sides, windows, spacing, histogram and history.

    The page shows patients' images and texts: keep it where the data are. Exit status 1 if anything could not be shown.
    """
    from rich.console import Console
    from rich.progress import Progress

    from medmvl.cli.data_cache import find_geometry
    from medmvl.processing.contact_sheet import write_contact_sheet

    given = (("units", units), ("series", series), ("gaps", gaps if gaps != "refuse" else None))
    wanted = find_geometry(model, geometry) if model is not None or geometry is not None else None
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("records", total=None)
        faults = write_contact_sheet(
            file,
            out,
            image_root=image_root,
            volume_root=volume_root,
            geometry=wanted,
            records=records,
            options={name: value for name, value in given if value is not None},
            on_record=lambda total: progress.update(task, advance=1, total=total),
        )
    typer.echo(
        f"{out}: written{f'; {faults} record(s) or file(s) could not be shown, see the page' if faults else ''}."
    )
    if faults:
        raise typer.Exit(1)
