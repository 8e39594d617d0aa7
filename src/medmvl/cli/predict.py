"""`medmvl predict`, `medmvl score` and `medmvl ask`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from medmvl.cli import options as o

OutFile = Annotated[Path, typer.Option("--out", help="JSON Lines file; a rerun goes on where it stopped.")]


def predict(
    model: o.ModelFolder,
    data: o.DataFile,
    out: OutFile,
    image_root: o.ImageRoot = None,
    volume_root: o.VolumeRoot = None,
    max_new_tokens: o.MaxNewTokens = 256,
    temperature: o.Temperature = 0.0,
    num_beams: o.NumBeams = 1,
    save_token_ids: Annotated[bool, typer.Option(help="Also write the generated token ids.")] = False,
    control: Annotated[
        str | None, typer.Option(help="blank, shuffled or text_only: answer without (the right) media.")
    ] = None,
    template: o.Template = None,
    batch_size: o.BatchSize = 8,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
) -> None:
    """Answer every record of a file; rows are written as they come and never doubled."""
    from medmvl.errors import RecipeError, did_you_mean
    from medmvl.inference import GenerationOptions, Predictor, predict_file
    from medmvl.inference.batch import CONTROLS

    if control not in (None, *CONTROLS):
        raise RecipeError(f"Unknown control {control!r}. {did_you_mean(str(control), CONTROLS)}")
    predictor = Predictor.from_pretrained(model, device=device, dtype=dtype, template=template)
    with progress("predicting") as on_row:
        predict_file(
            predictor,
            data,
            out,
            image_root=image_root,
            volume_root=volume_root,
            options=GenerationOptions(max_new_tokens, temperature, num_beams),
            batch_size=batch_size,
            save_token_ids=save_token_ids,
            control=control,
            on_row=on_row,
        )
    typer.echo(f"Predictions are in {out}")


def score(
    model: o.ModelFolder,
    data: o.DataFile,
    out: OutFile,
    image_root: o.ImageRoot = None,
    volume_root: o.VolumeRoot = None,
    template: o.Template = None,
    batch_size: o.BatchSize = 8,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
) -> None:
    """Write the teacher-forced loss of every record (nats per supervised token)."""
    from medmvl.inference import Predictor, score_file

    predictor = Predictor.from_pretrained(model, device=device, dtype=dtype, template=template)
    with progress("scoring") as on_row:
        score_file(
            predictor, data, out, image_root=image_root, volume_root=volume_root, batch_size=batch_size, on_row=on_row
        )
    typer.echo(f"Scores are in {out}")


def ask(
    model: o.ModelFolder,
    question: Annotated[str, typer.Argument(help="The question; quote it.")],
    image: Annotated[
        list[Path] | None, typer.Option(help="Image file (PNG, JPEG, TIFF, DICOM, npy); repeatable.")
    ] = None,
    volume: Annotated[list[Path] | None, typer.Option(help="NIfTI or npy file or DICOM folder; repeatable.")] = None,
    max_new_tokens: o.MaxNewTokens = 256,
    temperature: o.Temperature = 0.0,
    num_beams: o.NumBeams = 1,
    template: o.Template = None,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
) -> None:
    """Ask a model one question about images or volumes."""
    from medmvl.errors import DataError
    from medmvl.files import existing, existing_file
    from medmvl.inference import Predictor

    images = [str(existing_file(path, "image")) for path in image or []]
    volumes = [str(existing(path, "volume")) for path in volume or []]
    if not question.strip():
        raise DataError("The question is empty. Ask something.")
    if not images and not volumes:
        typer.echo("No picture was given (--image, --volume): the model answers without seeing anything.", err=True)
    predictor = Predictor.from_pretrained(model, device=device, dtype=dtype, template=template)
    typer.echo(
        predictor.answer(
            question,
            images=images,
            volumes=volumes,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            num_beams=num_beams,
        )
    )


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
