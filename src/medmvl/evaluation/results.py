"""results.json: the entry of a benchmark, and merging of several benchmarks into one file."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medmvl.errors import EvaluationError
from medmvl.evaluation.breakdown import by_finding, by_group, by_grouping, closed_answers, report_findings_of
from medmvl.evaluation.controls import floor_answers, image_share
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.label_conventions import convention_of
from medmvl.evaluation.metrics.vqa import is_closed
from medmvl.evaluation.score_notes import score_notes
from medmvl.evaluation.scoring import Answers, Score, defined, score_columns
from medmvl.evaluation.statistics import LEVEL, RESAMPLES, SEED
from medmvl.evaluation.tasks import Benchmark
from medmvl.files import read_json, write_json

RESULTS = "results.json"
FORMAT = 1
_SOFTWARE = ("medmvl", "numpy", "nltk", "sacrebleu")


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


def score_benchmark(
    benchmark: Benchmark, answers: Answers, controls: Mapping[str, Answers] | None = None
) -> dict[str, Any]:
    """Score one model's items and its controls: the benchmark's entry in results.json.

    Args:
        benchmark: the columns and their metrics.
        answers: the model's.
        controls: answers of the same model without the right image, by control name; `majority` (or `chance`) is always added.
    """
    given, items = dict(controls or {}), answers.items
    benchmark = benchmark.with_headline_for(items)
    scores = score_columns(benchmark, answers)
    if not scores:
        raise EvaluationError(
            f"None of the {len(items)} records fits a column of the benchmark {benchmark.name!r}. Its columns need the "
            f"record keys that its converter writes (task, answer_type, boxes, labels). Check the benchmark's name."
        )
    blind = {**given, **floor_answers(benchmark, items)}
    return {
        "title": benchmark.title,
        "about": benchmark.about,
        "license": benchmark.license,
        "headline": benchmark.headline,
        "synthetic": benchmark.synthetic or any(item.record.get("synthetic") for item in items),
        "model": defined(scores),
        "controls": {name: defined(score_columns(benchmark, theirs)) for name, theirs in blind.items()},
        "image": image_share(benchmark, answers, scores, given),
        "gain": benchmark.gain,
        "charts": _charts(benchmark, items, given),
        "scorers": _scorers(benchmark, scores),
        "counts": _counts(items),
        "label_conventions": _label_conventions(items),
        "breakdown": by_group(benchmark, answers),
        "groupings": by_grouping(benchmark, answers, blind),
        "notes": score_notes(benchmark, items),
        "findings": by_finding(benchmark, items),
        "closed": closed_answers(items),
        "report_findings": {
            "model": report_findings_of(benchmark, items),
            "controls": {name: report_findings_of(benchmark, theirs.items) for name, theirs in given.items()},
        },
    }


def _charts(benchmark: Benchmark, items: Sequence[Item], controls: Mapping[str, Answers]) -> list[dict[str, Any]]:
    if benchmark.charts is None:
        return []
    return benchmark.charts(items, {name: answers.items for name, answers in controls.items()})


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


def _label_conventions(items: Sequence[Item]) -> dict[str, str]:
    """Return {name: description} of the conventions under which the items' labels are read."""
    found = {convention_of(item.record) for item in items if item.record.get("labels")}
    return {convention.name: convention.describe() for convention in sorted(found, key=lambda one: one.name)}


def _counts(items: Sequence[Item]) -> dict[str, int]:
    return {
        "records": len(items),
        "closed": sum(map(is_closed, items)),
        "patients": len({item.patient for item in items}),
        "empty_predictions": sum(not item.prediction.strip() for item in items),
        "empty_references": sum(not item.reference.strip() for item in items),
        "chinese": sum(item.chinese for item in items),
    }
