"""`medmvl data cache`: preparation of every volume of a data file, once, for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medmvl.cli import options as o
from medmvl.cli.read_flags import with_read_flags
from medmvl.data.read_options import ReadOptions
from medmvl.data.read_spelling import spell_flags
from medmvl.errors import counted


@with_read_flags
def cache(
    file: o.Records,
    out: Annotated[
        Path,
        typer.Option(
            help="Cache folder (with --shards: or URL); an unfinished one is completed.", parser=o.place, metavar="PATH"
        ),
    ],
    model: o.GeometryModel = None,
    geometry: o.GeometryName = None,
    volume_root: o.VolumeRoot = None,
    workers: Annotated[int, typer.Option(help="Processes (or Ray tasks) at a time.", min=1)] = 1,
    engine: Annotated[
        Literal["processes", "ray"], typer.Option(help="ray: over many machines (extra 'ray').")
    ] = "processes",
    metadata: Annotated[
        Path | None, typer.Option(help="CT-RATE's metadata csv, for NIfTI files without rescale.")
    ] = None,
    shards: Annotated[
        bool, typer.Option("--shards", help="Write tar shards with an index (WebDataset layout), each worker its own.")
    ] = False,
    *,
    reading: ReadOptions,
) -> None:
    """Prepare all volumes of FILE with the model's geometry; a rerun completes the cache. Exit status 1 if any failed."""
    from medmvl.cli.geometry_choice import find_geometry
    from medmvl.data.roots import MediaRoots
    from medmvl.errors import DataError
    from medmvl.processing.cache import build_cache
    from medmvl.processing.shards import build_shards
    from medmvl.progress_bar import progress_bar
    from medmvl.remote import RemotePath

    if isinstance(out, RemotePath) and not shards:
        raise DataError("--out may be a URL only with --shards.")
    wanted = find_geometry(model, geometry)
    with progress_bar("volumes") as bar:
        report = (build_shards if shards else build_cache)(
            file,
            wanted,
            out,
            roots=MediaRoots(volume=volume_root, reading=reading),
            workers=workers,
            engine=engine,
            metadata=metadata,
            on_volume=bar.advance,
        )
    typer.echo(
        f"{out}: {counted(report.prepared, 'volume')} prepared, {report.kept} already there, {len(report.failures)} failed; "
        f"geometry {wanted.name} v{wanted.version} ({wanted.hash}), size {wanted.size}."
    )
    if report.failures:
        _print_failures(report.failures)
        raise typer.Exit(1)


def _print_failures(failures: list[tuple[int, str]]) -> None:
    """Print the first 50 failures as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from medmvl.errors import printable
    from medmvl.processing.cache import FAILURES

    table = Table("record", "reason", title=f"failed, see {FAILURES}")
    for number, reason in failures[:50]:
        table.add_row(str(number), escape(printable(spell_flags(reason))))
    Console(stderr=True).print(table)
