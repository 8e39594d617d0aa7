"""`medmvl data convert`: convert a published data set to records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Settings of a data set are flags as well (`--language en`); which there are is known when its name is.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


def convert(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Data set; `medmvl list datasets` shows all.")],
    source: Annotated[Path, typer.Argument(help="Folder (or file) of the data set as it was unpacked.")],
    out: Annotated[Path, typer.Option(help="Folder for <split>.jsonl and report.json.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the converter; may be repeated.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first faulty item.")] = False,
    max_faults: Annotated[
        float, typer.Option(help="Share of faulty items above which the exit status is 2.", min=0, max=1)
    ] = 0.05,
    limit: Annotated[int | None, typer.Option(help="Keep only the first records of every split.", min=1)] = None,
) -> None:
    """Turn a data set in its published layout into records, with a report of what was dropped and why.

    The settings of a data set are given as --set KEY=VALUE or as flags: --language en, --multi-turn. docs/datasets.md lists
    them; an unknown setting is rejected with the known ones.
    """
    from medmvl.data import converters
    from medmvl.errors import printable
    from medmvl.files import read_json
    from medmvl.progress_bar import progress_bar

    options = _settings(settings or []) | _flags(context.args)
    with progress_bar("records") as bar:
        result = converters.convert(
            name,
            source,
            out,
            options=options,
            strict=strict,
            max_fault_share=max_faults,
            limit=limit,
            on_record=bar.advance,
        )
    report = read_json(out / "report.json")
    typer.echo(f"{report['title']}. License: {report['license']}")
    for split, file in result.files.items():
        typer.echo(f"{file}: {result.counts[split]} records")
    for reason, count in result.report.left_out.most_common():
        typer.echo(f"left out: {count} × {reason}")
    for reason, _ in result.report.faults.most_common():
        typer.echo(printable(f"faulty: {result.report.describe_fault(reason)}"))
        if reason in result.report.hints:
            typer.echo(printable(f"  {result.report.hints[reason]}"))
    for note in result.report.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"Paths in the records are relative to {result.media_root}; details in {out / 'report.json'}.")


def _settings(values: list[str]) -> dict[str, str]:
    """Return KEY=VALUE texts as a dictionary."""
    from medmvl.errors import DataError

    options = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals:
            raise DataError(f"--set {value}: write it as KEY=VALUE.")
        options[key.strip()] = text.strip()
    return options


def _flags(arguments: list[str]) -> dict[str, str]:
    """Return further flags as settings: `--image-column file` and `--image file` are image=file, a bare flag is true."""
    from medmvl.errors import DataError

    options: dict[str, str] = {}
    waiting: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, text = argument[2:].partition("=")
            key = name.replace("-", "_").removesuffix("_column")
            options[key] = text if equals else "true"
            waiting = None if equals else key
        elif waiting is not None:
            options[waiting], waiting = argument, None
        else:
            raise DataError(f"Unexpected argument {argument!r}. Settings are given as --set KEY=VALUE or --key VALUE.")
    return options
