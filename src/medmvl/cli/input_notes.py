"""Notes on the error stream about the images and volumes of a question: what is used of them, and whether training had such."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from medmvl.data.read_options import ReadOptions


def note_inputs(model: Path, images: Sequence[str], volumes: Sequence[str], reading: ReadOptions) -> None:
    """Print which series is used of folders that hold more, and whether the model was trained with fewer inputs at a time."""
    from medmvl.processing.stored_prompts import read_prompts

    for volume in volumes:
        note_series(Path(volume), reading.series)
    if note := read_prompts(model).beyond_training(len(images), len(volumes)):
        typer.echo(f"note: {note} The answer may mean nothing.", err=True)


def note_series(folder: Path, series: str | None) -> None:
    """Print which series of a DICOM folder is used and what is left out; nothing for files, and if nothing is left out.

    Names of files and folders are not printed: they may name patients.
    """
    from medmvl.imaging.dicom.scan import describe_choice

    if not folder.is_dir():
        return
    chosen, left_out = describe_choice(folder, series)
    if left_out:
        typer.echo(f"note: The volume is the series {chosen}. Left out of its folder: {'; '.join(left_out)}.", err=True)
