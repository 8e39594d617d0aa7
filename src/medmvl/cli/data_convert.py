"""`medmvl data convert`: a published data set becomes records with one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    name: Annotated[str, typer.Argument(help="Data set; `medmvl list datasets` shows all.")],
    source: Annotated[Path, typer.Argument(help="Folder (or file) of the data set as it was unpacked.")],
    out: Annotated[Path, typer.Option(help="Folder for <split>.jsonl and report.json.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the converter; may be repeated.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first faulty item.")] = False,
    max_faults: Annotated[float, typer.Option(help="Share of faulty items above which the exit status is 2.")] = 0.05,
    limit: Annotated[int | None, typer.Option(help="Stop after this many records per split.")] = None,
) -> None:
    """Turn a data set in its published layout into records, with a report of what was dropped and why."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from medmvl.data import prepare
    from medmvl.errors import DataError

    options = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise DataError(f"--set {setting}: write it as KEY=VALUE.")
        options[key.strip()] = value.strip()
    columns = (SpinnerColumn(), TextColumn("{task.completed:.0f} records"), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        result = prepare.convert(
            name,
            source,
            out,
            options=options,
            strict=strict,
            max_fault_share=max_faults,
            limit=limit,
            on_record=lambda: progress.advance(task),
        )
    converter = prepare.DATASETS[name]
    typer.echo(f"{converter.title}. Licence: {converter.licence}")
    for split, file in result.files.items():
        typer.echo(f"{file}: {result.counts[split]} records")
    for kind, counts in (("left out", result.ledger.left_out), ("faulty", result.ledger.faults)):
        for reason, count in counts.most_common():
            typer.echo(f"{kind}: {count} × {reason}")
    for note in result.ledger.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"Paths in the records are relative to {result.media_root}; details in {out / 'report.json'}.")
