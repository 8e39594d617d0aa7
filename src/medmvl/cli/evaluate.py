"""`medmvl evaluate`: score predictions, or predict and score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medmvl.cli import options as o


def evaluate(
    benchmark: Annotated[
        list[str], typer.Option(help="Name of a benchmark (medmvl list benchmarks), or paper-2d, paper-ct; repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for results.json, table.md and report.html.")],
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Predictions to score: a JSON Lines file, or a folder with NAME.jsonl and NAME.CONTROL.jsonl."
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint folder: predict first, then score.")] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="With --model: folder of the converted benchmark, or its records file.")
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
    labeller: Annotated[str | None, typer.Option(help="Labeller of generated reports instead of the default.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="Score by another published protocol, such as llava-med or m3d.")
    ] = None,
    radeval: Annotated[
        str | None, typer.Option(help="Clinical metrics through RadEval, such as radgraph,f1chexbert (extra radeval).")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="log.jsonl of the training run, for the loss curve.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "MedM-VL evaluation",
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
) -> None:
    """Score predictions, or predict and score, with intervals and controls."""
    from medmvl.errors import EvaluationError
    from medmvl.evaluation import compare_predictions, evaluate_model, evaluate_predictions, expand_benchmarks
    from medmvl.evaluation.model import control_pairs, find_predictions

    if against is not None and predictions is None:
        raise EvaluationError("--against compares two predictions files and needs --predictions.")
    if (model is None) == (predictions is None):
        raise EvaluationError("Give either --predictions FILE, or --model DIR with --data-root DIR.")
    names = expand_benchmarks(benchmark)
    shared: dict[str, Any] = {
        "labels": labels,
        "predicted_labels": predicted_labels,
        "labeller": labeller,
        "profile": profile,
        "radeval": radeval.split(",") if radeval else (),
        "log": log,
        "title": title,
        "image_root": image_root,
        "volume_root": volume_root,
        "strict": strict,
        "max_faulty": max_faulty,
    }
    if predictions is not None:
        pairs = control_pairs(control_predictions or [])
        for name in names:
            file, controls = find_predictions(predictions, name, alone=len(names) == 1)
            evaluate_predictions(file, name, out, {**controls, **pairs}, references=references, **shared)
            if against is not None:
                other, _ = find_predictions(against, name, alone=len(names) == 1)
                folder = out if len(names) == 1 else out / name
                compare_predictions(file, other, name, folder, image_root=image_root, volume_root=volume_root)
    else:
        from medmvl.cli.predict import progress
        from medmvl.evaluation import BENCHMARKS
        from medmvl.inference import GenerationOptions, Predictor, Retriever

        if data_root is None:
            raise EvaluationError(
                "--model needs --data-root: the folder of the converted benchmark or its records file."
            )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        loaded: dict[bool, Predictor | Retriever] = {}  # one for questions, one for retrieval
        for name in names:
            looks = BENCHMARKS[name].retrieval
            if looks not in loaded:
                assert model is not None
                loaded[looks] = (
                    Retriever.from_pretrained(model, **where)
                    if looks
                    else Predictor.from_pretrained(model, template=template, **where)
                )
            with progress(f"predicting {name}") as on_row:
                evaluate_model(
                    loaded[looks],
                    name,
                    data_root,
                    out,
                    control or [],
                    options=GenerationOptions(max_new_tokens, num_beams=num_beams),
                    batch_size=batch_size,
                    on_row=on_row,
                    **shared,
                )
    typer.echo(f"Results are in {out / 'report.html'}")
