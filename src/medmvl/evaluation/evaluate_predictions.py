"""Scoring of a predictions file into an evaluation folder: results.json, table.md and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmvl.data.formats import read_records
from medmvl.data.roots import MediaRoots, roots_of_predictions
from medmvl.errors import EvaluationError, MedMVLError, naming
from medmvl.evaluation.controls import check_control_names
from medmvl.evaluation.gallery import pick_cases, single_scores
from medmvl.evaluation.items import Faults, Item, has_reference, make_item, read_items
from medmvl.evaluation.label_files import attach_labels, read_label_file
from medmvl.evaluation.metrics.labels import PREDICTED
from medmvl.evaluation.options import EvaluationOptions
from medmvl.evaluation.radeval import check_metrics, radeval_scorers, radeval_scores
from medmvl.evaluation.report import keep_training_log, write_details, write_report
from medmvl.evaluation.results import score_benchmark, write_results
from medmvl.evaluation.scoring import Answers
from medmvl.evaluation.table import markdown_table
from medmvl.evaluation.tasks import BENCHMARKS, Benchmark, with_profile
from medmvl.files import sha256, write_text

#: The fault of an answer whose question is not among the references.
NOT_ASKED = "id not in the data"


def evaluate_predictions(
    predictions: Path,
    benchmark: str,
    out: Path,
    controls: Mapping[str, Path] | None = None,
    *,
    roots: MediaRoots | None = None,
    options: EvaluationOptions | None = None,
) -> dict[str, Any]:
    """Score a predictions file and write results.json, table.md and report.html into `out`.

    A folder that already holds results of other benchmarks keeps them: call this once per benchmark.

    Args:
        predictions: JSON Lines of records with `prediction`.
        benchmark: a name in `BENCHMARKS`.
        out: the evaluation folder.
        controls: predictions of the same model on the same records without the right image, by control name
            (`blank`, `shuffled`, `text_only`).
        roots: folders of the images and volumes, for the pictures of the report; without them those that `medmvl predict` noted, else
            paths are used as written.
        options: how to score and report.

    Returns:
        The content of results.json.

    Raises:
        DataError: if a file is missing or is not JSON Lines.
        EvaluationError: for an unknown benchmark or control, or rows that cannot be scored. After all files were written:
            for too many faults, or a clinical metric that could not be run.
    """
    chosen = options or EvaluationOptions()
    task = configured_benchmark(benchmark, chosen)
    paths = {name: Path(path) for name, path in (controls or {}).items()}
    check_control_names(paths, task.controls)
    check_metrics(chosen.radeval)
    model = _read_model_answers(Path(predictions), task, chosen)
    control_answers = {name: Answers(_read_control_items(path, task, chosen)) for name, path in paths.items()}
    answers = Answers(model.items)
    with naming(predictions):
        entry = score_benchmark(task, answers, control_answers)
    failure = _add_clinical(entry, model.items, chosen.radeval)
    entry["counts"]["other_records"] = model.others
    entry["faults"] = model.faults.to_dict()
    entry["predictions"] = {"file": Path(predictions).name, "sha256": sha256(predictions)}
    folder = Path(out)
    results = write_results(folder, {benchmark: entry})
    write_text(folder / "table.md", markdown_table(results))
    singles = [score for _, score in single_scores(task, answers).values()]
    cases = pick_cases(task, answers, control_answers, roots_of_predictions(predictions, MediaRoots.of(roots)))
    write_details(folder, benchmark, cases, singles)
    if chosen.log is not None:
        keep_training_log(folder, chosen.log)
    write_report(folder, chosen.title)
    if failure is not None:
        raise failure
    with naming(predictions):
        check_faults(model.faults, len(model.items) + model.dropped, chosen.max_faulty)
    return results


def configured_benchmark(name: str, options: EvaluationOptions) -> Benchmark:
    """Return the benchmark with the profile and the labeler that the options name.

    Raises:
        EvaluationError: for an unknown benchmark, profile or labeler.
    """
    task = BENCHMARKS[name]
    task = task if options.profile is None else with_profile(task, options.profile)
    return task if options.labeler is None else task.with_labeler(options.labeler)


@dataclass(frozen=True, slots=True)
class _ModelAnswers:
    """A model's items of one benchmark; `dropped` faulty rows of its file are not among them, nor `others` records."""

    items: list[Item]
    faults: Faults
    dropped: int
    others: int


def _read_model_answers(path: Path, task: Benchmark, options: EvaluationOptions) -> _ModelAnswers:
    """Read the model's predictions, compare them with the references, and attach labels."""
    items, faults = _read(path, options)
    dropped = faults.total()
    if options.references is not None:
        items = check_against_references(items, Path(options.references), task, faults, strict=options.strict)
        dropped += len(faults.found.get(NOT_ASKED, ()))
    items, others = items_of(task, items, path)
    if options.labels is not None:
        items = attach_labels(items, read_label_file(options.labels), "labels", faults, "true labels")
    if options.predicted_labels is not None:
        table = read_label_file(options.predicted_labels)
        items = attach_labels(items, table, PREDICTED, faults, "predicted labels")
    return _ModelAnswers(items, faults, dropped, others)


def _read(path: Path, options: EvaluationOptions) -> tuple[list[Item], Faults]:
    """Read a predictions file with the key names and the box format of the options."""
    defaults = {} if options.box_format is None else {"box_format": options.box_format}
    return read_items(path, strict=options.strict, keys=options.keys, defaults=defaults)


def _read_control_items(path: Path, task: Benchmark, options: EvaluationOptions) -> list[Item]:
    """Read a control's predictions; their faults are not reported, since only shared records are compared."""
    items, _ = items_of(task, _read(path, options)[0], path)
    if options.labels is not None:
        items = attach_labels(items, read_label_file(options.labels), "labels", Faults(), "")
    return items


def _add_clinical(entry: dict[str, Any], items: list[Item], names: Sequence[str]) -> MedMVLError | None:
    """Add RadEval's numbers to an entry; one that cannot be had is returned as the error to end with."""
    failure = None
    for name in names:
        try:
            found = radeval_scores(items, [name])
        except MedMVLError as error:
            failure = failure or error
            continue
        entry["model"].update(found)
        entry["scorers"].update(radeval_scorers(list(found), items))
    return failure


def check_faults(faults: Faults, rows: int, max_faulty: float) -> None:
    """Raise if more than `max_faulty` of all rows were faulty.

    Raises:
        EvaluationError: naming the faults.
    """
    share = min(1.0, faults.total() / max(1, rows))
    if share > max_faulty:
        raise EvaluationError(
            f"{share:.1%} of the rows are faulty, more than the allowed {max_faulty:.1%}: {faults.describe()}. "
            "The results were written; repair the predictions, or raise --max-faulty if you accept this."
        )


def items_of(benchmark: Benchmark, items: list[Item], path: Path) -> tuple[list[Item], int]:
    """Return the items that belong to the benchmark, and how many of the file do not.

    Raises:
        EvaluationError: if none does.
    """
    own = [item for item in items if benchmark.belongs(item)]
    if not own:
        tasks = sorted({str(item.record.get("task")) for item in items})
        raise EvaluationError(
            f"{path} holds no record of the benchmark {benchmark.name!r}: its tasks are {', '.join(tasks)}. "
            "Choose the benchmark that fits the file."
        )
    return own, len(items) - len(own)


def check_against_references(
    items: list[Item], references: Path, benchmark: Benchmark, faults: Faults, *, strict: bool
) -> list[Item]:
    """Compare the ids of the items with the records they should answer.

    An unknown id is dropped, a missing one becomes an empty answer (a skipped question is not a right one); both are
    counted and named.

    Raises:
        EvaluationError: with `strict`, at the first difference.
    """
    expected = (_unanswered(record) for record in read_records(references) if has_reference(record))
    records = {item.id: item for item in expected if benchmark.belongs(item)}
    answered = {item.id for item in items}
    unknown = [item.id for item in items if item.id not in records]
    missing = [identifier for identifier in records if identifier not in answered]
    for kind, ids in ((NOT_ASKED, unknown), ("not answered", missing)):
        if ids and strict:
            raise EvaluationError(f"{references}: {kind}: {ids[0]}. Predict again, or leave out --strict to go on.")
        for identifier in ids:
            faults.add(kind, identifier)
    return [item for item in items if item.id in records] + [records[key] for key in missing]


def _unanswered(record: Mapping[str, Any]) -> Item:
    return make_item({**record, "prediction": ""})
