"""`medmvl data sample`: a small synthetic hospital export to try everything with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sample(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the export.")],
    patients: Annotated[int, typer.Option(help="How many patients.", min=1, max=10_000)] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the patients; the quickstart's is 0.", min=0)] = 2026,
) -> None:
    """Write a synthetic export as from a hospital: DICOM folders, films as PNG, an Excel table of reports, questions as CSV."""
    from medmvl.phantoms.sample_export import write_sample_export

    folder = write_sample_export(out, patients, seed)
    typer.echo(
        f"{folder}: {patients} synthetic patients; README.txt says what is in it. docs/first-model.md goes on from here."
    )
