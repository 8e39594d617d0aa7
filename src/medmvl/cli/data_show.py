"""`medmvl data show`: a contact sheet of a data file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmvl.cli import options as o
from medmvl.cli.read_flags import with_read_flags
from medmvl.data.read_options import ReadOptions
from medmvl.errors import counted


@with_read_flags
def show(
    file: o.Records,
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    model: o.GeometryModel = None,
    geometry: o.GeometryName = None,
    image_root: o.ImageRoot = None,
    volume_root: o.VolumeRoot = None,
    records: Annotated[int, typer.Option(help="Number of records shown, from the first on.", min=1)] = 12,
    *,
    reading: ReadOptions,
) -> None:
    """Write an HTML contact sheet: slices in three planes with sides, windows, spacing, histogram and history.

    With --model or --geometry it also shows what the model sees of a volume. The page shows patients' images and texts:
    keep it where the data are. Exit status 1 if anything could not be shown.
    """
    from medmvl.cli.geometry_choice import find_geometry
    from medmvl.data.roots import MediaRoots
    from medmvl.files import check_output
    from medmvl.processing.contact_sheet import write_contact_sheet
    from medmvl.progress_bar import progress_bar

    check_output(out)
    wanted = find_geometry(model, geometry) if model is not None or geometry is not None else None
    with progress_bar("records") as bar:
        faults = write_contact_sheet(
            file,
            out,
            roots=MediaRoots(image_root, volume_root, reading),
            geometry=wanted,
            records=records,
            on_record=bar.advance,
        )
    hidden = (
        f"; {counted(faults, 'record or file', 'records or files')} could not be shown, see the page" if faults else ""
    )
    typer.echo(f"{out}: written{hidden}.")
    if faults:
        raise typer.Exit(1)
