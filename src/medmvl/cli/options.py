"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelFolder = Annotated[Path, typer.Option("--model", help="Checkpoint folder.")]
DataFile = Annotated[Path, typer.Option("--data", help="Records: JSON array, JSON Lines or Parquet.")]
ImageRoot = Annotated[Path | None, typer.Option(help="Folder of the images; default: the data file's own.")]
VolumeRoot = Annotated[Path | None, typer.Option(help="Folder of the volumes; default: the data file's own.")]
Template = Annotated[str | None, typer.Option(help="Another chat template than the checkpoint's.")]
BatchSize = Annotated[int, typer.Option(help="Records per batch.", min=1)]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, float16, or auto: as stored on a GPU, float32 on the CPU.")
]
Device = Annotated[str | None, typer.Option(help="Such as cpu, cuda:0; default: the first GPU, else the CPU.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer in tokens.", min=1)]
Temperature = Annotated[float, typer.Option(help="0: the most likely words; above: sampled.", min=0.0)]
NumBeams = Annotated[int, typer.Option(help="Width of a beam search.", min=1)]
