"""From a predictions file to an evaluation folder: results.json, table.md, report.html."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medmvl.data.formats import read_records
from medmvl.errors import EvaluationError
from medmvl.evaluation.controls import MAJORITY, check_control_names, image_share, majority_answers
from medmvl.evaluation.items import Faults, Item, make_item, read_items
from medmvl.evaluation.scoring import Score, defined, score_columns
from medmvl.evaluation.statistics import LEVEL, RESAMPLES, SEED
from medmvl.evaluation.table import markdown_table
from medmvl.evaluation.tasks import BENCHMARKS, Benchmark
from medmvl.files import read_json, sha256, write_json, write_text

RESULTS = "results.json"
FORMAT = 1
MAX_FAULTY = 0.01  # share of faulty rows that is reported but tolerated
_SOFTWARE = ("medmvl", "numpy", "rouge-score", "sacrebleu")


def merge_results(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Join results of several benchmarks into one; a later part replaces an earlier one of the same benchmark.

    Raises:
        EvaluationError: if a part is not of the shape of results.json.
    """
    merged: dict[str, Any] = {"format": FORMAT, "benchmarks": {}}
    for part in parts:
        if not isinstance(part.get("benchmarks"), Mapping):
            raise EvaluationError('These are not results: the key "benchmarks" with an object is missing.')
        merged["benchmarks"].update(part["benchmarks"])
        merged.update({key: value for key, value in part.items() if key != "benchmarks"})
    return merged


def results_of(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of results.json for finished benchmark entries."""
    return {
        "format": FORMAT,
        "benchmarks": dict(entries),
        "software": {"python": platform.python_version(), **_versions()},
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "seed": SEED, "unit": "patient"},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _SOFTWARE:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_results(out: Path, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Write results.json into `out`, keeping the benchmarks that an earlier call wrote there, and return it all."""
    path = out / RESULTS
    earlier = [read_json(path)] if path.is_file() else []
    results = merge_results([*earlier, results_of(entries)])
    write_json(path, results)
    return results


def score_items(
    benchmark: Benchmark, items: list[Item], controls: Mapping[str, list[Item]] | None = None
) -> dict[str, Any]:
    """Score one model's items and its controls: the benchmark's entry in results.json.

    Args:
        benchmark: what is scored how.
        items: the model's answers.
        controls: answers of the same model without the right image, by control name; `majority` is always added.
    """
    given = dict(controls or {})
    scores = score_columns(benchmark, items)
    if not scores:
        raise EvaluationError(
            f"None of the {len(items)} records fits a column of the benchmark {benchmark.name!r}. Its columns need the "
            f"record keys that its converter writes (task, answer_type, boxes, labels). Check the benchmark's name."
        )
    answers = {**given, MAJORITY: majority_answers(items)}
    return {
        "title": benchmark.title,
        "about": benchmark.about,
        "licence": benchmark.licence,
        "headline": benchmark.headline,
        "synthetic": any(item.record.get("synthetic") for item in items),
        "model": defined(scores),
        "controls": {name: defined(score_columns(benchmark, theirs)) for name, theirs in answers.items()},
        "image": image_share(benchmark, items, scores, given),
        "scorers": _scorers(benchmark, scores),
        "counts": _counts(items),
    }


def _scorers(benchmark: Benchmark, scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    described = {}
    for key, score in scores.items():
        metric = benchmark.column(key).metric
        described[key] = {
            "name": metric.name,
            "version": metric.version,
            "definition": metric.definition,
            "dropped": score.dropped,
            "empty": score.empty,
        }
    return described


def _counts(items: Sequence[Item]) -> dict[str, int]:
    return {
        "records": len(items),
        "patients": len({item.patient for item in items}),
        "empty_predictions": sum(not item.prediction.strip() for item in items),
        "empty_references": sum(not item.reference.strip() for item in items),
        "chinese": sum(item.chinese for item in items),
    }


def check_against_references(items: list[Item], references: Path, faults: Faults, *, strict: bool) -> list[Item]:
    """Compare the ids of the items with the records they should answer.

    An unknown id is dropped, a missing one becomes an empty answer (a skipped question is not a right one); both are
    counted and named.

    Raises:
        EvaluationError: with `strict`, at the first difference.
    """
    records = {str(record.get("id")): record for record in read_records(references)}
    answered = {item.id for item in items}
    unknown = [item.id for item in items if item.id not in records]
    missing = [identifier for identifier in records if identifier not in answered]
    for kind, ids in (("id not in the data", unknown), ("not answered", missing)):
        if ids and strict:
            raise EvaluationError(f"{references}: {kind}: {ids[0]}. Predict again, or leave out --strict to go on.")
        for identifier in ids:
            faults.add(kind, identifier)
    return [item for item in items if item.id in records] + [_unanswered(records[key]) for key in missing]


def _unanswered(record: Mapping[str, Any]) -> Item:
    return make_item({**record, "prediction": ""})


def evaluate_predictions(
    predictions: Path,
    benchmark: str,
    out: Path,
    controls: Mapping[str, Path] | None = None,
    *,
    references: Path | None = None,
    strict: bool = False,
    max_faulty: float = MAX_FAULTY,
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
        strict: stop at the first faulty row.
        max_faulty: share of faulty rows above which the evaluation ends with an error after writing its files.

    Returns:
        The content of results.json.

    Raises:
        DataError: if a file is missing or is not JSON Lines.
        EvaluationError: for an unknown benchmark or control, rows that cannot be scored, too many faults.
    """
    task = BENCHMARKS[benchmark]
    paths = {name: Path(path) for name, path in (controls or {}).items()}
    check_control_names(paths)
    items, faults = read_items(Path(predictions), strict=strict)
    if references is not None:
        items = check_against_references(items, Path(references), faults, strict=strict)
    answers = {name: read_items(path, strict=strict)[0] for name, path in paths.items()}
    entry = score_items(task, items, answers)
    entry["faults"] = faults.to_dict()
    entry["predictions"] = {"file": Path(predictions).name, "sha256": sha256(predictions)}
    results = write_results(Path(out), {benchmark: entry})
    write_text(Path(out) / "table.md", markdown_table(results))
    check_faults(faults, len(items), max_faulty)
    return results


def check_faults(faults: Faults, scored: int, max_faulty: float) -> None:
    """Raise if more than `max_faulty` of all rows were faulty.

    Raises:
        EvaluationError: naming the faults.
    """
    share = faults.total() / max(1, scored + faults.total())
    if share > max_faulty:
        raise EvaluationError(
            f"{share:.1%} of the rows are faulty, more than the allowed {max_faulty:.1%}: {faults.describe()}. "
            "The results were written; repair the predictions, or raise --max-faulty if you accept this."
        )
