"""Options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer


def _finite(value: float) -> float:
    """Raise if a number is not finite; a range lets "nan" pass."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def place(text: str) -> Path:
    """Return a path, or the URL of a root in an object store, which readers accept in its place."""
    from medmvl.errors import DataError
    from medmvl.remote import as_root

    try:
        return as_root(text)  # type: ignore[return-value]
    except DataError as error:
        raise typer.BadParameter(str(error)) from error


ModelFolder = Annotated[Path, typer.Option("--model", help="Checkpoint folder.")]
DataFile = Annotated[
    Path,
    typer.Option("--data", help="Records: JSON array, JSON Lines or Parquet; or a URL.", parser=place, metavar="PATH"),
]
ImageRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder or URL of the images; default: by report.json next to the data file, else its folder.",
        parser=place,
        metavar="PATH",
    ),
]
VolumeRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder or URL of the volumes; default: by report.json next to the data file, else its folder.",
        parser=place,
        metavar="PATH",
    ),
]
Records = Annotated[
    Path,
    typer.Argument(help="JSON array, JSON Lines or Parquet file of records; or a URL.", parser=place, metavar="FILE"),
]
GeometryModel = Annotated[
    Path | None, typer.Option("--model", help="Checkpoint folder or recipe (.yaml) whose volume geometry is used.")
]
GeometryName = Annotated[
    str | None, typer.Option("--geometry", help="Instead of --model: name or .yaml of a geometry.")
]
Template = Annotated[str | None, typer.Option(help="Name of a chat template to use instead of the checkpoint's.")]
BatchSize = Annotated[int, typer.Option(help="Records per batch.", min=1, max=65536)]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, float16, or auto: as stored on a GPU, float32 on the CPU.")
]
Quantize = Annotated[
    str | None, typer.Option(help="int8 or nf4: keep the LLM's weights in few bits (extra quantize).", metavar="NAME")
]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; default: the first GPU, else the CPU.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer in tokens.", min=1, max=1_000_000)]
Temperature = Annotated[
    float,
    typer.Option(
        help="0: the most likely token each time; above 0: sampled, the higher the more varied.",
        min=0.0,
        max=100.0,
        callback=_finite,
    ),
]
NumBeams = Annotated[int, typer.Option(help="Number of beams of the search; 1: greedy.", min=1, max=1024)]
AbstainBelow = Annotated[
    str | None,
    typer.Option(
        help='Give no answer below this confidence, 0 to 1, or below that of the checkpoint ("stored").',
        metavar="NUMBER",
    ),
]


def confidence(value: str | None) -> float | str | None:
    """Return the value of `AbstainBelow`.

    Raises:
        RecipeError: if it is neither a number from 0 to 1 nor "stored".
    """
    from medmvl.inference.calibration import STORED, Calibration

    if value is None or value == STORED:
        return value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    return Calibration().resolve(number if 0 <= number <= 1 else value)
