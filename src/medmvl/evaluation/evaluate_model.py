"""Evaluation of a checkpoint: predict the records that are missing, keep every prediction, score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from medmvl.data.formats import local_records, read_records
from medmvl.data.roots import MediaRoots, Root, media_root_of
from medmvl.errors import DataError, EvaluationError
from medmvl.evaluation.controls import check_control_names
from medmvl.evaluation.endpoint import Endpoint, predict_endpoint
from medmvl.evaluation.evaluate_predictions import evaluate_predictions
from medmvl.evaluation.items import make_item
from medmvl.evaluation.options import EvaluationOptions
from medmvl.evaluation.tasks import BENCHMARKS, Benchmark
from medmvl.files import PathLike, existing_file, existing_folder, write_jsonl
from medmvl.inference import GenerationOptions, Predictor, Retriever, predict_file, retrieve_file
from medmvl.remote import RemotePath, as_root, exists, join

OnRow = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""

PREDICTIONS = "predictions"
#: Suffixes by which the URL of a records file is told from that of a folder.
SUFFIXES = (".json", ".jsonl", ".parquet")


def predictions_path(out: Path, benchmark: str, control: str | None = None) -> Path:
    """Return the path of a benchmark's predictions, or of one of its controls, in an evaluation folder."""
    suffix = f".{control}" if control else ""
    return out / PREDICTIONS / f"{benchmark}{suffix}.jsonl"


def kept_controls(out: Path, benchmark: str) -> dict[str, Path]:
    """Return the predictions files of the controls that an evaluation folder holds, by control name."""
    paths = {name: predictions_path(out, benchmark, name) for name in BENCHMARKS[benchmark].controls}
    return {name: path for name, path in paths.items() if path.is_file()}


def find_predictions(path: Path, benchmark: str, *, alone: bool) -> tuple[Path, dict[str, Path]]:
    """Return the predictions file of a benchmark and its controls' files.

    Args:
        path: a file, or a folder that holds `NAME.jsonl` and `NAME.CONTROL.jsonl` (such as `out/predictions`).
        benchmark: the name to search for in a folder.
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
    controls = {name: folder / f"{benchmark}.{name}.jsonl" for name in BENCHMARKS[benchmark].controls}
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


def records_file(benchmark: Benchmark, data_root: PathLike) -> Root:
    """Return the file with the benchmark's records: `data_root` itself if it is a file, else one of its usual names.

    Args:
        benchmark: with the usual names.
        data_root: folder, file, or the URL of one; a URL with the suffix of a records file is one.

    Raises:
        DataError: if there is none, naming the paths that were tried.
    """
    folder = as_root(data_root, "data root")
    if isinstance(folder, RemotePath):
        if PurePosixPath(folder).suffix.lower() in SUFFIXES:
            return folder
        found: Iterator[Root] = (url for name in benchmark.files if exists(url := join(folder, name)))
    elif folder.is_file():
        return folder
    else:
        folder = existing_folder(folder, "data root")
        found = (folder / name for name in benchmark.files if (folder / name).is_file())
    for file in found:
        return file
    raise DataError(
        f"No records of {benchmark.name!r} below {folder}. Tried: {', '.join(benchmark.files)}. "
        "Convert the data set first (medmvl data convert), or give the file itself as the data root."
    )


def benchmark_records(benchmark: Benchmark, source: Root, out: Path) -> Path:
    """Return a file with only the benchmark's records: `source` (or its local copy) if all are, else a file in `out/data/`.

    Raises:
        DataError: if no record belongs to the benchmark.
    """
    records = list(read_records(source))
    own = [record for record in records if benchmark.belongs(make_item({**record, "prediction": ""}))]
    if not own:
        raise DataError(f"{source} holds no record of the benchmark {benchmark.name!r}. Convert it with that task.")
    if len(own) == len(records):
        return local_records(source)
    path = out / "data" / f"{benchmark.name}.jsonl"
    write_jsonl(path, own)
    return path


def predictor_of(model: PathLike | Predictor | Retriever, benchmark: str) -> Predictor:
    """Return the predictor to answer questions with, loading it from a folder if needed.

    Raises:
        EvaluationError: if it is a dual encoder, which cannot answer questions.
    """
    if isinstance(model, Retriever):
        raise EvaluationError(f"The benchmark {benchmark!r} asks questions, and a dual encoder cannot answer any.")
    return model if isinstance(model, Predictor) else Predictor.from_pretrained(model)


def retriever_of(model: PathLike | Predictor | Retriever, controls: Sequence[str]) -> Retriever:
    """Return the retriever to search with, loading it from a folder if needed.

    Raises:
        EvaluationError: if the model answers questions instead, or if a control does not apply to retrieval.
    """
    if "text_only" in controls:
        raise EvaluationError(
            "The control text_only does not apply to retrieval: without an image there is nothing to search with. "
            "Use the controls blank and shuffled."
        )
    if isinstance(model, Predictor):
        raise EvaluationError(
            "Retrieval needs the dual encoder of a contrastive stage: give its folder or a Retriever."
        )
    return model if isinstance(model, Retriever) else Retriever.from_pretrained(model)


def evaluate_model(
    model: PathLike | Predictor | Retriever | Endpoint,
    benchmark: str,
    data_root: PathLike,
    out: Path,
    controls: Sequence[str] = (),
    *,
    roots: MediaRoots | None = None,
    generation: GenerationOptions | None = None,
    batch_size: int = 8,
    on_row: OnRow | None = None,
    options: EvaluationOptions | None = None,
) -> dict[str, Any]:
    """Predict a benchmark with a model, also under controls, and score the predictions.

    Predictions are kept in `out/predictions/`. A rerun answers only what is missing, and controls that were predicted
    earlier stay in the table.

    Args:
        model: a checkpoint folder, a loaded predictor, for retrieval a loaded retriever, or a served model.
        benchmark: a name in `BENCHMARKS`.
        data_root: folder with the benchmark's records (see `Benchmark.files`), or the records file itself; or the URL of
            one.
        out: the evaluation folder.
        controls: of `blank`, `shuffled`, `text_only`: also answer with the image replaced in this way. A benchmark with
            controls of its own runs all of them.
        roots: folders of the images and volumes; by default the folder that `medmvl data convert` noted, else the one of
            the records file.
        generation: how to generate; by default greedily with at most 256 new tokens, as published.
        batch_size: records per batch.
        on_row: called with (rows done, rows in all), those of the controls included.
        options: how to score and report; `references` is always the benchmark's records.

    Returns:
        The content of results.json.

    Raises:
        DataError: if no records of the benchmark are found, or a record is not valid.
        EvaluationError: for an unknown benchmark or control.
    """
    answered = answer_benchmark(
        model,
        benchmark,
        data_root,
        out,
        controls,
        roots=roots,
        generation=generation,
        batch_size=batch_size,
        on_row=on_row,
    )
    return score_answered(answered, options)


@dataclass(frozen=True)
class Answered:
    """A benchmark whose predictions are written.

    Attributes:
        benchmark: its name.
        records: the file with its records and no others.
        roots: folders of the images and volumes.
        out: the evaluation folder.
    """

    benchmark: str
    records: Path
    roots: MediaRoots
    out: Path


def answer_benchmark(
    model: PathLike | Predictor | Retriever | Endpoint,
    benchmark: str,
    data_root: PathLike,
    out: Path,
    controls: Sequence[str] = (),
    *,
    rounds: Sequence[str | None] | None = None,
    roots: MediaRoots | None = None,
    generation: GenerationOptions | None = None,
    batch_size: int = 8,
    on_row: OnRow | None = None,
) -> Answered:
    """Write the predictions that `evaluate_model` scores; the further arguments and errors are its own.

    Processes may answer different rounds, of one benchmark or several, of an evaluation folder at the same time.

    Args:
        rounds: what is answered here: None for the questions as they are, and names in `controls`; by default all.
    """
    task = BENCHMARKS[benchmark]
    check_control_names(dict.fromkeys(controls), task.controls)
    controls = controls if task.answer is None else task.controls
    source = records_file(task, data_root)
    roots = MediaRoots.of(roots).with_default(media_root_of(source))
    answered = Answered(benchmark, benchmark_records(task, source, Path(out)), roots, Path(out))
    answer = _answerer(model, task, controls, generation)
    rounds = (None, *controls) if rounds is None else rounds
    for number, control in enumerate(rounds):
        answer(
            answered.records,
            predictions_path(answered.out, benchmark, control),
            roots=roots,
            batch_size=batch_size,
            control=control,
            on_row=_count_of_round(on_row, number, len(rounds)),
        )
    return answered


def score_answered(answered: Answered, options: EvaluationOptions | None = None) -> dict[str, Any]:
    """Score what `answer_benchmark` wrote; options, result and errors are those of `evaluate_model`."""
    return evaluate_predictions(
        predictions_path(answered.out, answered.benchmark),
        answered.benchmark,
        answered.out,
        kept_controls(answered.out, answered.benchmark),
        roots=answered.roots,
        options=replace(options or EvaluationOptions(), references=answered.records),
    )


def _count_of_round(on_row: OnRow | None, number: int, rounds: int) -> OnRow | None:
    """Return `on_row` for one round of as many rows as each other: the model's answers, or a control's."""
    return None if on_row is None else lambda done, total: on_row(number * total + done, rounds * total)


def _answerer(
    model: PathLike | Predictor | Retriever | Endpoint,
    task: Benchmark,
    controls: Sequence[str],
    generation: GenerationOptions | None,
) -> Callable[..., int]:
    """Return the function that writes the predictions of a records file with this model."""
    if isinstance(model, Endpoint):
        if controls or task.retrieval or task.answer is not None:
            raise EvaluationError(
                "An endpoint answers questions about images as they are: no controls, no retrieval, no evidence."
            )
        return partial(_answer_by_endpoint, model)
    if task.retrieval:
        return partial(retrieve_file, retriever_of(model, controls))
    if task.answer is not None:
        return partial(task.answer, predictor_of(model, task.name))
    return partial(predict_file, predictor_of(model, task.name), options=generation)


def _answer_by_endpoint(
    endpoint: Endpoint,
    records: Path,
    out: Path,
    *,
    roots: MediaRoots,
    batch_size: int,
    control: str | None,
    on_row: OnRow | None,
) -> int:
    """Call `predict_endpoint`, whose concurrency stands in for the batch size; there are no controls."""
    return predict_endpoint(endpoint, records, out, roots=roots, on_row=on_row)
