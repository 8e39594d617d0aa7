"""`medmvl study`: a DICOM study in a folder in, results in a folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medmvl.cli import options as o
from medmvl.errors import counted

Protocol = Annotated[Path | None, typer.Option(help="Protocol (YAML): series, questions, results.")]
ModelOrProtocol = Annotated[Path | None, typer.Option("--model", help="Checkpoint folder; default: the protocol's.")]


def study(
    source: Annotated[
        Path | None,
        typer.Option(
            "--in", help="Folder of one study; default: MERCURE_IN_DIR, MONAI_INPUTPATH, HOLOSCAN_INPUT_PATH."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; default: MERCURE_OUT_DIR, MONAI_OUTPUTPATH, HOLOSCAN_OUTPUT_PATH."),
    ] = None,
    protocol: Protocol = None,
    model: ModelOrProtocol = None,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
) -> None:
    """Answer a protocol's questions about one DICOM study; results are DICOM objects and result.json."""
    from medmvl.progress_bar import progress_bar
    from medmvl.ward.folder_app import run_study
    from medmvl.ward.privacy import silence_warnings

    silence_warnings()
    with progress_bar("questions") as bar:
        options: dict[str, Any] = {"device": device, "dtype": dtype, "on_question": bar.update}
        result = run_study(source, out, protocol=protocol, model=model, **options)
    typer.echo(f"{result.outcome}: {counted(len(result.objects), 'object')}")
