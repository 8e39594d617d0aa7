"""`medmvl data deidentify`: a copy of DICOM files without identifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def deidentify(
    source: Annotated[Path, typer.Argument(help="Folder of DICOM files, searched at every depth, or one file.")],
    out: Annotated[Path, typer.Option(help="New folder for the copies: <patient>/<series>/<instance>.dcm.")],
    key_file: Annotated[
        Path | None, typer.Option(help="Key of the pseudonyms; default: as for `data convert folder`.")
    ] = None,
) -> None:
    """Copy DICOM files without identifiers (PS3.15 Basic Profile). Exit status 2 if a file could not be copied.

    Pixels stay as they are: series that may show names in the picture are listed. Needs the extra `deidentify`.
    """
    from medmvl.data.deidentify import deidentify as run
    from medmvl.data.pseudonyms import Pseudonyms
    from medmvl.progress_bar import progress_bar

    pseudonyms = Pseudonyms(key_file)
    with progress_bar("files") as bar:
        result = run(source, out, pseudonyms, bar.advance)
    typer.echo(f"{out}: {result.written} files of {result.patients} patients")
    for reason, count in result.left_out.most_common():
        typer.echo(f"left out: {count} × {reason}")
    for series in result.burned_in:
        typer.echo(f"warning: {series} may show names in its pixels; look at it before you pass it on")
    for number, reason in result.faults:
        typer.echo(f"fault: file {number} of the sorted tree: {reason}", err=True)
    typer.echo(
        f"Pseudonyms were made with {pseudonyms.key_file}. Keep that file, and give it to nobody who gets the copies."
    )
    if result.faults:
        raise typer.Exit(2)
