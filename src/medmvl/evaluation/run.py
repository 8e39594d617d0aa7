"""From predictions, or a model, to an evaluation folder: results.json, table.md, report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmvl.data.formats import read_records
from medmvl.errors import EvaluationError, MedMVLError
from medmvl.evaluation.controls import check_control_names
from medmvl.evaluation.gallery import pick_cases
from medmvl.evaluation.items import Faults, Item, has_reference, make_item, read_items
from medmvl.evaluation.label_files import attach_labels, read_label_file
from medmvl.evaluation.metrics.labels import PREDICTED
from medmvl.evaluation.pictures import MediaRoots
from medmvl.evaluation.radeval import check_metrics, radeval_scorers, radeval_scores
from medmvl.evaluation.report import keep_training_log, write_details, write_report
from medmvl.evaluation.results import score_benchmark, write_results
from medmvl.evaluation.scoring import Answers
from medmvl.evaluation.table import markdown_table
from medmvl.evaluation.tasks import BENCHMARKS, Benchmark, with_profile
from medmvl.files import sha256, write_text

MAX_FAULTY = 0.01  # share of faulty rows that is reported but tolerated

#: The fault of an answer whose question is not among the references.
NOT_ASKED = "id not in the data"


def evaluate_predictions(
    predictions: Path,
    benchmark: str,
    out: Path,
    controls: Mapping[str, Path] | None = None,
    *,
    references: Path | None = None,
    labels: Path | None = None,
    predicted_labels: Path | None = None,
    labeller: str | None = None,
    profile: str | None = None,
    radeval: Sequence[str] = (),
    strict: bool = False,
    max_faulty: float = MAX_FAULTY,
    image_root: Path | None = None,
    volume_root: Path | None = None,
    log: Path | Sequence[Mapping[str, Any]] | None = None,
    title: str = "MedM-VL evaluation",
) -> dict[str, Any]:
    """Score a predictions file and write results.json, table.md and report.html into `out`.

    A folder that already holds results of other benchmarks keeps them: call this once per benchmark.

    Args:
        predictions: JSON Lines of records with `prediction`.
        benchmark: a name in `BENCHMARKS`.
        out: the evaluation folder.
        controls: predictions of the same model on the same records without the right image, by control name
            (`blank`, `shuffled`, `text_only`).
        references: the records that should have been answered, to find missing and unknown ids.
        labels: label file with the true findings of reports, for records that carry none.
        predicted_labels: label file with the findings of the generated reports, made by a labeller outside.
        labeller: a name in `LABELLERS`, instead of the benchmark's own.
        profile: a name in `PROFILES`: score by another published protocol than the benchmark's own.
        radeval: clinical metrics to add through RadEval (names in `radeval.LOCAL_METRICS`).
        strict: stop at the first faulty row.
        max_faulty: share of faulty rows above which the evaluation ends with an error after writing its files.
        image_root: folder below which the records' image paths lie, for the pictures of the report.
        volume_root: likewise for volumes.
        log: a run's log.jsonl (or its rows with `stage`, `step`, `loss`) for the loss curve.
        title: heading of the report.

    Returns:
        The content of results.json.

    Raises:
        DataError: if a file is missing or is not JSON Lines.
        EvaluationError: for an unknown benchmark or control, rows that cannot be scored; after everything was written, for
            too many faults or a clinical metric that could not be run.
    """
    task = BENCHMARKS[benchmark]
    task = task if profile is None else with_profile(task, profile)
    task = task if labeller is None else task.with_labeller(labeller)
    paths = {name: Path(path) for name, path in (controls or {}).items()}
    check_control_names(paths)
    check_metrics(radeval)
    items, faults = read_items(Path(predictions), strict=strict)
    dropped = faults.total()
    answers = {name: read_items(path, strict=strict)[0] for name, path in paths.items()}
    if references is not None:
        items = check_against_references(items, Path(references), task, faults, strict=strict)
        dropped += len(faults.found.get(NOT_ASKED, ()))
    items, others = own_items(task, items, Path(predictions))
    answers = {name: own_items(task, theirs, paths[name])[0] for name, theirs in answers.items()}
    if labels is not None:
        table = read_label_file(labels)
        items = attach_labels(items, table, "labels", faults, "true labels")
        answers = {name: attach_labels(theirs, table, "labels", Faults(), "") for name, theirs in answers.items()}
    if predicted_labels is not None:
        items = attach_labels(items, read_label_file(predicted_labels), PREDICTED, faults, "predicted labels")
    own, blind = Answers(items), {name: Answers(theirs) for name, theirs in answers.items()}
    entry = score_benchmark(task, own, blind)
    failure = _add_clinical(entry, items, radeval)
    entry["counts"]["other_records"] = others
    entry["faults"] = faults.to_dict()
    entry["predictions"] = {"file": Path(predictions).name, "sha256": sha256(predictions)}
    folder = Path(out)
    results = write_results(folder, {benchmark: entry})
    write_text(folder / "table.md", markdown_table(results))
    write_details(folder, benchmark, pick_cases(task, own, blind, MediaRoots(image_root, volume_root)))
    if log is not None:
        keep_training_log(folder, log)
    write_report(folder, title)
    if failure is not None:
        raise failure
    check_faults(faults, len(items) + dropped, max_faulty)
    return results


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


def own_items(benchmark: Benchmark, items: list[Item], path: Path) -> tuple[list[Item], int]:
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
