"""`medmvl ask`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmvl.cli import options as o
from medmvl.cli.input_notes import note_inputs
from medmvl.cli.read_flags import with_read_flags
from medmvl.data.read_options import ReadOptions

if TYPE_CHECKING:
    from medmvl.inference.engine import Answer


@with_read_flags
def ask(
    model: o.ModelFolder,
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="One or several; quote each.")],
    image: Annotated[
        list[Path] | None, typer.Option(help="Image file (PNG, JPEG, TIFF, DICOM, npy); repeatable.")
    ] = None,
    volume: Annotated[list[Path] | None, typer.Option(help="NIfTI or npy file or DICOM folder; repeatable.")] = None,
    max_new_tokens: o.MaxNewTokens = 256,
    temperature: o.Temperature = 0.0,
    num_beams: o.NumBeams = 1,
    abstain_below: o.AbstainBelow = None,
    out: Annotated[Path | None, typer.Option(help="Also write the answers to this JSON file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print questions and answers as JSON.")] = False,
    template: o.Template = None,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
    *,
    reading: ReadOptions,
) -> None:
    """Ask a model about images or volumes; each question is answered on its own."""
    from medmvl.files import check_output
    from medmvl.progress_bar import waiting

    check_questions(questions)
    if out is not None:
        check_output(out)
    images, volumes = visual_files(image or [], volume or [])
    if not images and not volumes:
        typer.echo("No picture was given (--image, --volume): the model answers without seeing anything.", err=True)
    with waiting(f"loading {model.name}"):  # the imports take a part of the time
        from medmvl.inference import Predictor
        from medmvl.inference.confidence import rounded

        predictor = Predictor.from_pretrained(model, device=device, dtype=dtype, template=template)
    note_inputs(model, images, volumes, reading)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "num_beams": num_beams}
    options["abstain_below"] = o.confidence(abstain_below)
    rows = []
    for question in questions:
        if len(questions) > 1 and not json:
            typer.echo(f"{question}\n  ", nl=False)
        stream = predictor.stream(question, images=images, volumes=volumes, read=reading, **options)
        answer = _at_its_end(stream) if json else _print_stream(stream)
        rows.append({"question": question, "answer": answer.text, "confidence": rounded(answer.confidence)})
    _deliver(rows, out, json)


def check_questions(questions: list[str]) -> None:
    """Raise if a question is empty or is not Unicode text."""
    from medmvl.errors import DataError

    for question in questions:
        if not question.strip():
            raise DataError("The question is empty. Ask something.")
        try:
            question.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"The question {question!a} is not valid Unicode text. Use a terminal with the encoding UTF-8."
            ) from None


def visual_files(images: list[Path], volumes: list[Path]) -> tuple[list[str], list[str]]:
    """Return the paths of images and volumes as texts; raise if one does not exist."""
    from medmvl.files import existing, existing_file

    return [str(existing_file(path, "image")) for path in images], [str(existing(path, "volume")) for path in volumes]


def _print_stream(stream: Generator[str, None, Answer]) -> Answer:
    """Print an answer while it is generated, then its confidence if it is telling: not to the standard output, which is the answer alone."""
    from medmvl.inference.confidence import is_telling, percent

    begun = False

    def show(piece: str) -> None:
        nonlocal begun
        piece = piece if begun else piece.lstrip()
        typer.echo(piece, nl=False)
        begun = begun or bool(piece)

    answer = _at_its_end(stream, show)
    typer.echo()
    if answer.withheld is not None or is_telling(answer.text):
        typer.echo(f"  (confidence {percent(answer.confidence)})", err=True)
    return answer


def _at_its_end(stream: Generator[str, None, Answer], show: Callable[[str], None] = lambda piece: None) -> Answer:
    while True:
        try:
            show(next(stream))
        except StopIteration as end:
            answer: Answer = end.value
            return answer


def _deliver(rows: list[dict[str, Any]], out: Path | None, as_json: bool) -> None:
    """Print or write the answers, without the paths: folders of an export are often named by patients."""
    import json

    from medmvl.files import write_json

    value = {"answers": rows}
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
    if out is not None:
        write_json(out, value)
        typer.echo(f"Written to {out}", err=True)
