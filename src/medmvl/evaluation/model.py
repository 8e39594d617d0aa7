"""From a checkpoint to an evaluation folder: predict what is missing, keep every prediction, score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medmvl.data.formats import read_records
from medmvl.errors import DataError, EvaluationError
from medmvl.evaluation.controls import MODEL_CONTROLS, check_control_names
from medmvl.evaluation.items import make_item
from medmvl.evaluation.run import MAX_FAULTY, evaluate_predictions
from medmvl.evaluation.tasks import BENCHMARKS, Benchmark
from medmvl.files import PathLike, existing_file, existing_folder, read_json, write_jsonl
from medmvl.inference import GenerationOptions, Predictor, Retriever, predict_file, retrieve_file

PREDICTIONS = "predictions"


def predictions_path(out: Path, benchmark: str, control: str | None = None) -> Path:
    """Return where the predictions of a benchmark, or of one of its controls, lie in an evaluation folder."""
    suffix = f".{control}" if control else ""
    return out / PREDICTIONS / f"{benchmark}{suffix}.jsonl"


def kept_controls(out: Path, benchmark: str) -> dict[str, Path]:
    """Return the controls whose predictions lie in an evaluation folder, by name."""
    paths = {name: predictions_path(out, benchmark, name) for name in MODEL_CONTROLS}
    return {name: path for name, path in paths.items() if path.is_file()}


def find_predictions(path: Path, benchmark: str, *, alone: bool) -> tuple[Path, dict[str, Path]]:
    """Return the predictions file of a benchmark and its controls' files.

    Args:
        path: a file, or a folder that holds `NAME.jsonl` and `NAME.CONTROL.jsonl` (such as `out/predictions`).
        benchmark: the name to look for in a folder.
        alone: whether this is the only benchmark asked for; one file cannot be scored as several.

    Raises:
        DataError: if the folder lacks the file.
        EvaluationError: if one file is given for several benchmarks.
    """
    if not path.is_dir():
        if not alone:
            raise EvaluationError(
                f"{path} is one file and several benchmarks are asked for. Give a folder with a NAME.jsonl for each."
            )
        return path, {}
    folder = path / PREDICTIONS if (path / PREDICTIONS).is_dir() else path
    file = existing_file(folder / f"{benchmark}.jsonl", f"predictions of {benchmark!r}")
    controls = {name: folder / f"{benchmark}.{name}.jsonl" for name in MODEL_CONTROLS}
    return file, {name: found for name, found in controls.items() if found.is_file()}


def control_pairs(pairs: Sequence[str]) -> dict[str, Path]:
    """Return {control: path} of command-line values `NAME=FILE`.

    Raises:
        EvaluationError: for a value of another form.
    """
    found = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise EvaluationError(f"A control's predictions are given as NAME=FILE, not {pair!r}.")
        found[name] = Path(path)
    return found


def records_file(benchmark: Benchmark, data_root: Path) -> Path:
    """Return the file with the benchmark's records: `data_root` itself if it is a file, else one of its usual names.

    Raises:
        DataError: naming the places looked at.
    """
    if data_root.is_file():
        return data_root
    folder = existing_folder(data_root, "data root")
    for name in benchmark.files:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"No records of {benchmark.name!r} below {folder}. Looked for: {', '.join(benchmark.files)}. "
        "Convert the data set first (medmvl data convert), or give the file itself as the data root."
    )


def media_root(records: Path) -> Path:
    """Return the folder that a converted file's media paths are relative to: as its report.json says, else its own."""
    report = records.parent / "report.json"
    noted = read_json(report).get("media_root") if report.is_file() else None
    return records.parent / noted if noted else records.parent


def own_records(benchmark: Benchmark, source: Path, out: Path) -> Path:
    """Return a file with only the benchmark's records: `source` itself, or a copy of its part in `out/data/`.

    Raises:
        DataError: if none belongs to the benchmark.
    """
    records = list(read_records(source))
    own = [record for record in records if benchmark.belongs(make_item({**record, "prediction": ""}))]
    if not own:
        raise DataError(f"{source} holds no record of the benchmark {benchmark.name!r}. Convert it with that task.")
    if len(own) == len(records):
        return source
    path = out / "data" / f"{benchmark.name}.jsonl"
    write_jsonl(path, own)
    return path


def predictor_of(model: PathLike | Predictor | Retriever, benchmark: str) -> Predictor:
    """Return what answers questions.

    Raises:
        EvaluationError: if it is a dual encoder, which cannot.
    """
    if isinstance(model, Retriever):
        raise EvaluationError(f"The benchmark {benchmark!r} asks questions, and a dual encoder does not answer any.")
    return model if isinstance(model, Predictor) else Predictor.from_pretrained(model)


def retriever_of(model: PathLike | Predictor | Retriever, controls: Sequence[str]) -> Retriever:
    """Return what looks for reports.

    Raises:
        EvaluationError: if it is a model that answers questions, or under a control that means nothing here.
    """
    if "text_only" in controls:
        raise EvaluationError(
            "Retrieval without an image has nothing to look for. Use the controls blank and shuffled."
        )
    if isinstance(model, Predictor):
        raise EvaluationError(
            "Retrieval needs the dual encoder of a contrastive stage: give its folder or a Retriever."
        )
    return model if isinstance(model, Retriever) else Retriever.from_pretrained(model)


def evaluate_model(
    model: PathLike | Predictor | Retriever,
    benchmark: str,
    data_root: Path,
    out: Path,
    controls: Sequence[str] = (),
    *,
    image_root: Path | None = None,
    volume_root: Path | None = None,
    options: GenerationOptions | None = None,
    batch_size: int = 8,
    strict: bool = False,
    max_faulty: float = MAX_FAULTY,
    on_row: Callable[[int, int], None] | None = None,
    **report: Any,
) -> dict[str, Any]:
    """Predict a benchmark with a model, also under controls, and evaluate the predictions.

    Predictions lie in `out/predictions/`; a rerun answers only what is missing, and controls that were predicted earlier
    stay in the table. Without roots, media paths are relative to the folder that `medmvl data convert` noted, else to
    that of the records file.

    Args:
        model: a checkpoint folder, a loaded predictor, or for retrieval a loaded retriever.
        benchmark: a name in `BENCHMARKS`.
        data_root: folder with the benchmark's records (see `Benchmark.files`), or the records file itself.
        out: the evaluation folder.
        controls: of `blank`, `shuffled`, `text_only`: also answer with the image replaced so.
        image_root: folder of the images.
        volume_root: folder of the volumes.
        options: how to generate; greedy with at most 256 new tokens by default, as published.
        batch_size: records per batch.
        strict: stop at the first faulty row.
        max_faulty: see `evaluate_predictions`.
        on_row: called with (rows done, rows in all) of the file being predicted.
        report: further keywords of `evaluate_predictions` (`log`, `title`, `predicted_labels`, ...).

    Returns:
        The content of results.json.

    Raises:
        DataError: if no records of the benchmark are found, or a record is not right.
        EvaluationError: for an unknown benchmark or control.
    """
    task = BENCHMARKS[benchmark]
    check_control_names(dict.fromkeys(controls))
    source = records_file(task, Path(data_root))
    media = media_root(source)
    images, volumes = image_root or media, volume_root or media
    folder = Path(out)
    records = own_records(task, source, folder)
    shared: dict[str, Any] = {"image_root": images, "volume_root": volumes, "batch_size": batch_size, "on_row": on_row}
    answer: Callable[..., int]
    if task.retrieval:
        answer = partial(retrieve_file, retriever_of(model, controls), records, **shared)
    else:
        predictor = predictor_of(model, benchmark)
        answer = partial(predict_file, predictor, records, options=options, **shared)
    for control in (None, *controls):
        answer(predictions_path(folder, benchmark, control), control=control)
    return evaluate_predictions(
        predictions_path(folder, benchmark),
        benchmark,
        folder,
        kept_controls(folder, benchmark),
        references=records,
        strict=strict,
        max_faulty=max_faulty,
        image_root=images,
        volume_root=volumes,
        **report,
    )
