"""`medmvl checkpoint card | push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint folder.")]


def card(
    folder: Folder,
    results: Annotated[
        Path | None, typer.Option(help="results.json of `medmvl evaluate`, for the table of metrics.")
    ] = None,
    base_results: Annotated[
        Path | None,
        typer.Option(
            help="results.json on the same questions of the model that it was fine-tuned from, to compare with."
        ),
    ] = None,
    statements: Annotated[
        Path | None, typer.Option(help="YAML file of what only you can state: developer, contact, intended_use, ...")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a README.md that this command did not write.")
    ] = False,
) -> None:
    """Write the model card (README.md) of a checkpoint, from what is known of it."""
    from medmvl.cards import read_statements, write_card
    from medmvl.errors import EvaluationError
    from medmvl.evaluation.table import base_table, markdown_table
    from medmvl.files import read_json

    if base_results is not None and results is None:
        raise EvaluationError("--base-results are shown beside --results. Give both.")
    measured = read_json(results) if results is not None else None
    written = write_card(
        folder,
        read_statements(statements) if statements is not None else None,
        measured,
        markdown_table(measured) if measured else "",
        base_table(measured, read_json(base_results)) if measured and base_results is not None else "",
        replace=force,
    )
    typer.echo(f"Written to {written}")


def push(
    folder: Folder,
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Model repository on the hub; made if absent.")
    ],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Visibility of a repository that is made.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be uploaded; nothing leaves the machine.")
    ] = False,
) -> None:
    """Upload a checkpoint with its model card to the Hugging Face hub."""
    from medmvl.checkpoints.push import files_to_push, push_folder
    from medmvl.training.engine.checkpoints import CHECKSUMS, verify

    files = files_to_push(folder)
    if (folder / CHECKSUMS).is_file():
        verify(folder)
    for file in files:
        typer.echo(f"  {file.relative_to(folder).as_posix()}  {file.stat().st_size:,} bytes")
    size = sum(file.stat().st_size for file in files)
    if dry_run:
        typer.echo(f"Dry run: {len(files)} files, {size / 1e6:,.1f} MB would go to {repository}. Nothing was uploaded.")
        return
    typer.echo(f"Uploaded {size / 1e6:,.1f} MB to {push_folder(folder, repository, private=private)}")
