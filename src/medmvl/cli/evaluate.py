"""`medmvl evaluate`: score predictions, or predict and score."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmvl.cli import options as o
from medmvl.cli.read_flags import with_read_flags
from medmvl.data.read_options import ReadOptions

if TYPE_CHECKING:
    from medmvl.data.roots import MediaRoots, Root
    from medmvl.evaluation import EvaluationOptions
    from medmvl.evaluation.endpoint import Endpoint
    from medmvl.inference import Predictor, Retriever


@with_read_flags
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for results.json, table.md and report.html.")],
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="Name of a benchmark (medmvl list benchmarks), or paper-2d, paper-ct; repeatable."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Instead: a table with its data sets, such as evaluate-table1 (medmvl list recipes) or a file."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --recipe: convert and check the data, predict nothing.")
    ] = False,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Predictions to score: a JSON Lines file, or a folder with NAME.jsonl and NAME.CONTROL.jsonl."
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint folder: predict first, then score.")] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            help="Folder or URL of the converted benchmarks (with --recipe: of the data sets), or the records file.",
            parser=o.place,
            metavar="PATH",
        ),
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="With --model: also answer under blank, shuffled or text_only; repeatable.")
    ] = None,
    control_predictions: Annotated[
        list[str] | None, typer.Option(help="With --predictions: NAME=FILE of a control's predictions; repeatable.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Predictions of another run: adds side-by-side.html with paired tests.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(help="Records that should have been answered, to find missing and unknown ids.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Label file (csv, json) with the true findings.")] = None,
    predicted_labels: Annotated[
        Path | None, typer.Option(help="Label file with the findings of the generated reports.")
    ] = None,
    labeler: Annotated[str | None, typer.Option(help="Labeler of generated reports instead of the default.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="Score by another published protocol, such as llava-med or m3d.")
    ] = None,
    radeval: Annotated[
        str | None, typer.Option(help="Clinical metrics through RadEval, such as radgraph,f1chexbert (extra radeval).")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="log.jsonl of the training run, for the loss curve.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "MedM-VL evaluation",
    endpoint: Annotated[
        str | None,
        typer.Option(help="Instead of --model: URL of an OpenAI-compatible API, such as http://host:8000/v1."),
    ] = None,
    served_model: Annotated[str | None, typer.Option(help="With --endpoint: name of the model there.")] = None,
    concurrency: Annotated[int, typer.Option(help="With --endpoint: requests at a time.", min=1)] = 4,
    keys: Annotated[
        str | None,
        typer.Option(
            help="Keys of another tool's predictions: id=question_id,question=prompt,answer=gt,prediction=text."
        ),
    ] = None,
    box_format: Annotated[
        str | None,
        typer.Option(help="Format of boxes in the answers, such as qwen-vl or list-pixel; default: {<x1>...}."),
    ] = None,
    image_root: o.ImageRoot = None,
    volume_root: o.VolumeRoot = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first faulty row.")] = False,
    max_faulty: Annotated[
        float, typer.Option(help="Share of faulty rows above which the exit status is not 0.", min=0.0, max=1.0)
    ] = 0.01,
    max_new_tokens: o.MaxNewTokens = 256,
    num_beams: o.NumBeams = 1,
    template: o.Template = None,
    batch_size: o.BatchSize = 8,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
    *,
    reading: ReadOptions,
) -> None:
    """Score predictions, or predict and score, with confidence intervals and controls."""
    from medmvl.data.roots import MediaRoots
    from medmvl.errors import EvaluationError
    from medmvl.evaluation import EvaluationOptions, expand_benchmarks
    from medmvl.files import OutputLock

    _check_sources(benchmark, recipe, dry_run, predictions, model, endpoint, served_model, against)
    names = expand_benchmarks(benchmark or ())
    roots = MediaRoots(image_root, volume_root, reading)
    options = EvaluationOptions(
        references=references,
        labels=labels,
        predicted_labels=predicted_labels,
        labeler=labeler,
        profile=profile,
        radeval=radeval.split(",") if radeval else (),
        strict=strict,
        max_faulty=max_faulty,
        log=log,
        title=title,
        keys=_key_pairs(keys),
        box_format=box_format,
    )
    if recipe is None and predictions is None and data_root is None:
        raise EvaluationError(
            "--model and --endpoint need --data-root: the folder of the converted benchmark or its records file."
        )
    served, table = None, None
    if endpoint is not None and served_model is not None:
        from medmvl.evaluation.endpoint import Endpoint

        served = Endpoint(endpoint, served_model, concurrency, max_new_tokens)
    if recipe is not None:
        from medmvl.cli.evaluate_table import prepare

        table = prepare(recipe, data_root, names, control or [], dry_run)
        if table is None:
            return
    with OutputLock(out, folder=True):
        if predictions is not None:
            _score_predictions(predictions, names, out, control_predictions or [], against, roots, options)
        else:
            from medmvl.inference import GenerationOptions

            generation = GenerationOptions(max_new_tokens, num_beams=num_beams)
            settings = {"roots": roots, "generation": generation, "batch_size": batch_size, "options": options}
            models = _Models(model, device, dtype, template, served)
            if table is not None:
                table.run(lambda one: _score_model(models, [one.name], one.records, out, table.controls, settings))
            else:
                assert data_root is not None
                _score_model(models, names, data_root, out, control or [], settings)
    _print_headlines(out, names if table is None else [one.name for one in table.ready])
    typer.echo(f"Results are in {out / 'report.html'}")


def _print_headlines(out: Path, names: list[str]) -> None:
    """Print the main score of each benchmark that was scored, and its weakest groups; the folder may hold others."""
    from medmvl.evaluation.headline import headline, weakest
    from medmvl.evaluation.results import RESULTS
    from medmvl.files import read_json

    entries = read_json(out / RESULTS)["benchmarks"]
    for name in dict.fromkeys(names):
        typer.echo(headline(name, entries[name]))
        if lowest := weakest(entries[name]):
            typer.echo(f"  lowest of {name}: {lowest}")


def _check_sources(
    benchmark: list[str] | None,
    recipe: Path | None,
    dry_run: bool,
    predictions: Path | None,
    model: Path | None,
    endpoint: str | None,
    served_model: str | None,
    against: Path | None,
) -> None:
    """Raise an EvaluationError if the flags do not say what to score, or contradict each other."""
    from medmvl.errors import EvaluationError

    if not benchmark and recipe is None:
        raise EvaluationError("Give --benchmark NAME or --recipe FILE.")
    if dry_run and recipe is None:
        raise EvaluationError("--dry-run belongs to --recipe.")
    if recipe is not None and predictions is not None:
        raise EvaluationError("--recipe predicts with --model or --endpoint and takes no --predictions.")
    if against is not None and predictions is None:
        raise EvaluationError("--against compares two predictions files and needs --predictions.")
    sources = sum(source is not None for source in (model, predictions, endpoint))
    if sources > 1 or (sources == 0 and not dry_run):
        raise EvaluationError("Give either --predictions FILE, or --model DIR or --endpoint URL with --data-root DIR.")
    if (endpoint is None) != (served_model is None):
        raise EvaluationError("--endpoint URL and --served-model NAME belong together.")


def _key_pairs(text: str | None) -> dict[str, str]:
    """Return {our key: their key} of "id=question_id,prediction=text".

    Raises:
        EvaluationError: for a part of another form.
    """
    from medmvl.errors import EvaluationError

    pairs = {}
    for part in text.split(",") if text else ():
        ours, equals, theirs = part.strip().partition("=")
        if not equals or not ours or not theirs:
            raise EvaluationError(f"--keys takes OURS=THEIRS pairs joined by commas, not {part!r}.")
        pairs[ours] = theirs
    return pairs


def _score_predictions(
    predictions: Path,
    names: list[str],
    out: Path,
    control_predictions: list[str],
    against: Path | None,
    roots: MediaRoots,
    options: EvaluationOptions,
) -> None:
    """Score the predictions of each benchmark, and compare them with those of another run if one is given."""
    from medmvl.evaluation import compare_predictions, evaluate_predictions
    from medmvl.evaluation.evaluate_model import control_pairs, find_predictions

    pairs, alone = control_pairs(control_predictions), len(names) == 1
    for name in names:
        file, controls = find_predictions(predictions, name, alone=alone)
        evaluate_predictions(file, name, out, {**controls, **pairs}, roots=roots, options=options)
        if against is not None:
            other, _ = find_predictions(against, name, alone=alone)
            compare_predictions(file, other, name, out if alone else out / name, roots=roots)


@dataclass
class _Models:
    """A served model, or the predictor and the retriever of one folder, each loaded when first needed."""

    folder: Path | None
    device: str | None
    dtype: str
    template: str | None
    served: Endpoint | None = None
    loaded: dict[bool, Predictor | Retriever] = field(default_factory=dict)

    def get(self, *, retrieval: bool) -> Predictor | Retriever | Endpoint:
        """Return the model for a kind of benchmark."""
        if self.served is not None:
            return self.served
        from medmvl.inference import Predictor, Retriever

        if retrieval not in self.loaded:
            assert self.folder is not None
            self.loaded[retrieval] = (
                Retriever.from_pretrained(self.folder, device=self.device, dtype=self.dtype)
                if retrieval
                else Predictor.from_pretrained(
                    self.folder, device=self.device, dtype=self.dtype, template=self.template
                )
            )
        return self.loaded[retrieval]


def _score_model(
    models: _Models, names: list[str], data_root: Root, out: Path, controls: list[str], settings: dict[str, Any]
) -> None:
    """Predict and score each benchmark with a checkpoint."""
    from medmvl.evaluation import BENCHMARKS, evaluate_model
    from medmvl.progress_bar import progress_bar

    for name in names:
        model = models.get(retrieval=BENCHMARKS[name].retrieval)
        with progress_bar(f"predicting {name}") as bar:
            evaluate_model(model, name, data_root, out, controls, on_row=bar.update, **settings)
