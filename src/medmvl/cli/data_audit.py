"""`medmvl data audit`: duplicates and leaks between files of records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmvl.cli import options as o
from medmvl.errors import counted


def audit(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Records files or URLs: the splits of one or several data sets.", parser=o.place, metavar="FILE..."
        ),
    ],
    media_root: Annotated[
        Path | None,
        typer.Option(
            help="Folder or URL of all media; default: the one in the report.json next to a file.",
            parser=o.place,
            metavar="PATH",
        ),
    ] = None,
    pixels: Annotated[bool, typer.Option(help="Read the media; --no-pixels compares ids and paths only.")] = True,
    distance: Annotated[int, typer.Option(help="Bits of 256 by which near-duplicate images may differ.")] = 15,
    out: Annotated[Path | None, typer.Option(help="Write the whole account to this JSON file.")] = None,
) -> None:
    """Find patients, files, near-duplicate images and records that several files share; exit status 2 if there are any."""
    from medmvl.data.audit import audit as run_audit
    from medmvl.files import check_output, write_json
    from medmvl.progress_bar import progress_bar

    if out is not None:
        check_output(out)
    with progress_bar("records") as bar:
        result = run_audit(files, media_root=media_root, pixels=pixels, distance=distance, on_record=bar.advance)
    if out is not None:
        write_json(out, result.to_dict())
    for finding in sorted(result.findings, key=lambda finding: not finding.is_leak):
        typer.echo(f"{'LEAK' if finding.is_leak else 'repeated'}: {finding.describe()}")
    if result.faults:
        typer.echo(
            f"{counted(len(result.faults), 'line is no record', 'lines are no records')}, e.g. {result.faults[0]}: see `medmvl data check`."
        )
    if result.unreadable:
        typer.echo(
            f"{counted(len(result.unreadable), 'image or volume file is', 'image or volume files are')} missing or unreadable, e.g. of record {result.unreadable[0]}."
        )
    counts = ", ".join(f"{name}: {count}" for name, count in result.records.items())
    typer.echo(f"{counts} records and {result.media} image and volume files compared.", err=True)
    if result.leaks:
        raise typer.Exit(2)
    typer.echo("No leak between the files.")
