"""`medmvl predict` and `medmvl score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from medmvl.cli import options as o
from medmvl.cli.read_flags import with_read_flags
from medmvl.data.read_options import ReadOptions

OutFile = Annotated[Path, typer.Option("--out", help="JSON Lines file; a rerun continues it.")]


@with_read_flags
def predict(
    model: o.ModelFolder,
    data: o.DataFile,
    out: OutFile,
    image_root: o.ImageRoot = None,
    volume_root: o.VolumeRoot = None,
    max_new_tokens: o.MaxNewTokens = 256,
    temperature: o.Temperature = 0.0,
    num_beams: o.NumBeams = 1,
    abstain_below: o.AbstainBelow = None,
    save_token_ids: Annotated[bool, typer.Option(help="Also write the generated token ids.")] = False,
    control: Annotated[
        str | None, typer.Option(help="blank, shuffled or text_only: answer without the right images and volumes.")
    ] = None,
    choices: Annotated[
        bool, typer.Option(help="Answer questions whose options are known by the most likely option.")
    ] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Answer with Ray Data on several processes or machines.")] = False,
    ray_workers: Annotated[int, typer.Option(help="With --ray: processes, each with a model.", min=1)] = 1,
    ray_gpus: Annotated[float, typer.Option(help="With --ray: GPUs of each process.", min=0.0)] = 0.0,
    ray_address: Annotated[str | None, typer.Option(help="With --ray: address of a cluster; default: here.")] = None,
    template: o.Template = None,
    batch_size: o.BatchSize = 8,
    dtype: o.Dtype = "auto",
    quantize: o.Quantize = None,
    device: o.Device = None,
    *,
    reading: ReadOptions,
) -> None:
    """Answer every record of a file; a rerun with the same --out adds the missing rows."""
    from medmvl.data.roots import MediaRoots
    from medmvl.errors import RecipeError, did_you_mean
    from medmvl.files import check_output
    from medmvl.inference import GenerationOptions, Predictor, predict_file
    from medmvl.inference.answering import CONTROLS, AnswerSettings
    from medmvl.progress_bar import progress_bar

    if control not in (None, *CONTROLS):
        raise RecipeError(f"Unknown control {control!r}. {did_you_mean(str(control), CONTROLS)}")
    check_output(out)
    loading: dict[str, Any] = {"device": device, "dtype": dtype, "template": template, "quantize": quantize}
    roots = MediaRoots(image_root, volume_root, reading)
    settings = AnswerSettings(
        GenerationOptions(max_new_tokens, temperature, num_beams, abstain_below=o.confidence(abstain_below)),
        save_token_ids,
        cast(Any, control),
        choices,
    )
    with progress_bar("predicting") as bar:
        common: dict[str, Any] = {"roots": roots, "batch_size": batch_size, "on_row": bar.update}
        if ray:
            from medmvl.inference.ray_job import RayOptions, predict_file_with_ray

            where = RayOptions(ray_workers, ray_gpus, ray_address)
            predict_file_with_ray(model, data, out, settings=settings, ray_options=where, loading=loading, **common)
        else:
            predict_file(Predictor.from_pretrained(model, **loading), data, out, **common, **vars(settings))
    typer.echo(f"Predictions are in {out}")


@with_read_flags
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
    *,
    reading: ReadOptions,
) -> None:
    """Write the teacher-forced loss of every record (nats per supervised token)."""
    from medmvl.data.roots import MediaRoots
    from medmvl.files import check_output
    from medmvl.inference import Predictor, score_file
    from medmvl.progress_bar import progress_bar

    check_output(out)
    predictor = Predictor.from_pretrained(model, device=device, dtype=dtype, template=template)
    with progress_bar("scoring") as bar:
        score_file(
            predictor,
            data,
            out,
            roots=MediaRoots(image_root, volume_root, reading),
            batch_size=batch_size,
            on_row=bar.update,
        )
    typer.echo(f"Scores are in {out}")
