"""`medmvl explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from medmvl.cli import options as o
from medmvl.cli.ask import check_questions, visual_files
from medmvl.cli.input_notes import note_inputs
from medmvl.cli.read_flags import with_read_flags
from medmvl.data.read_options import ReadOptions


@with_read_flags
def explain(
    model: o.ModelFolder,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question that was asked; quote it.")],
    out: Annotated[Path, typer.Option(help="Folder for evidence.json, evidence.png and, for a volume, heat.nii.gz.")],
    image: Annotated[list[Path] | None, typer.Option(help="Image file; repeatable.")] = None,
    volume: Annotated[list[Path] | None, typer.Option(help="NIfTI or npy file or DICOM folder; repeatable.")] = None,
    answer: Annotated[str | None, typer.Option(help="The answer to explain; default: the model's own.")] = None,
    sentence: Annotated[str | None, typer.Option(help="The part of the answer to explain; default: all of it.")] = None,
    target: Annotated[
        str | None, typer.Option(help="With several inputs: whose places are tested, image:0, volume:1 ...")
    ] = None,
    method: Annotated[
        str, typer.Option(help="occlusion, or attention-preview, which is quick and no evidence.")
    ] = "occlusion",
    neutral: Annotated[
        str, typer.Option(help="What replaces an occluded place: blur, surroundings or tissue.")
    ] = "blur",
    windows: Annotated[int, typer.Option(help="Most windows of each finer level.", min=1)] = 48,
    levels: Annotated[int, typer.Option(help="Levels of windows, each half as large as the last.", min=1, max=8)] = 2,
    batch_size: Annotated[int, typer.Option(help="Occluded inputs per batch.", min=1, max=65536)] = 16,
    max_new_tokens: o.MaxNewTokens = 256,
    template: o.Template = None,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
    *,
    reading: ReadOptions,
) -> None:
    """Show which places of an image or a volume a sentence of an answer depends on."""
    from medmvl.errors import DataError
    from medmvl.files import OutputLock
    from medmvl.inference import Predictor
    from medmvl.inference.evidence import ExplainOptions, save_evidence
    from medmvl.progress_bar import progress_bar

    check_questions([question])
    options = ExplainOptions(cast(Any, method), cast(Any, neutral), windows, levels, batch_size, max_new_tokens)
    images, volumes = visual_files(image or [], volume or [])
    if not images and not volumes:
        raise DataError("Give the picture that the answer is about: --image FILE or --volume PATH.")
    with OutputLock(out, folder=True):
        predictor = Predictor.from_pretrained(model, device=device, dtype=dtype, template=template)
        note_inputs(model, images, volumes, reading)
        with progress_bar("explaining") as bar:
            evidence = predictor.explain(
                question,
                images,
                volumes,
                answer=answer,
                sentence=sentence,
                target=target,
                read=reading,
                progress=bar.update,
                **{name: getattr(options, name) for name in ExplainOptions.__slots__},
            )
        paths = save_evidence(evidence, out)
    typer.echo(f"{evidence.answer}\n\n{evidence.caption}\n{evidence.numbers}")
    for warning in evidence.warnings:
        typer.echo(f"Warning: {warning}")
    typer.echo(f"Written: {', '.join(str(path) for path in paths)}")
