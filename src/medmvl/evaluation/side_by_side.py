"""Comparison of two runs on the same questions: paired tests, scores by group, and the answers that differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medmvl.data.roots import MediaRoots, roots_of_predictions
from medmvl.errors import EvaluationError
from medmvl.evaluation.gallery import single_scores, take_turns
from medmvl.evaluation.items import Item, read_items
from medmvl.evaluation.pictures import draw_case
from medmvl.evaluation.report import environment
from medmvl.evaluation.scoring import Answers, compare_answers, item_scores
from medmvl.evaluation.statistics import mcnemar
from medmvl.evaluation.tasks import BENCHMARKS, Benchmark
from medmvl.files import write_json, write_text

PAGE = "side-by-side.html"
DATA = "side-by-side.json"


def compare_predictions(
    first: Path,
    second: Path,
    benchmark: str,
    out: Path,
    *,
    names: tuple[str, str] | None = None,
    roots: MediaRoots | None = None,
    title: str = "MedM-VL: two runs side by side",
) -> dict[str, Any]:
    """Compare two predictions files of one benchmark and write side-by-side.html and .json into `out`.

    Only the records that both answered are compared; how many were not is in `counts`.

    Args:
        first: predictions of run a; differences are a minus b.
        second: predictions of run b.
        benchmark: a name in `BENCHMARKS`.
        out: the folder to write to.
        names: what to call the runs; by default their file or folder names.
        roots: folders of the images and volumes, for the pictures; without them those that `medmvl predict` noted for the first run,
            else the paths are used as written.
        title: heading of the page.

    Returns:
        The content of side-by-side.json: {"benchmark", "names", "metrics": {key: {"first", "second", "difference",
        "ci95", "p_value", "n"}}, "groups", "counts"}.

    Raises:
        DataError: if a file is missing or is not JSON Lines.
        EvaluationError: if the runs share no record of the benchmark.
    """
    task = BENCHMARKS[benchmark]
    runs = [Answers([item for item in read_items(Path(path))[0] if task.belongs(item)]) for path in (first, second)]
    shared = {item.id for item in runs[0].items} & {item.id for item in runs[1].items}
    if not shared:
        raise EvaluationError(
            f"{first} and {second} share no record of {benchmark!r}, so there is nothing to compare. "
            "Predict the same data file with both models."
        )
    mine, theirs = (Answers([item for item in run.items if item.id in shared]) for run in runs)
    task = task.with_headline_for(mine.items)
    called = names or _names(Path(first), Path(second))
    results = {
        "benchmark": benchmark,
        "title": task.title,
        "names": list(called),
        "metrics": _metrics(task, mine, theirs),
        "groups": _groups(task, mine, theirs),
        "counts": {"shared": len(shared), "only_first": len(runs[0].items) - len(shared),
                   "only_second": len(runs[1].items) - len(shared)},
    }  # fmt: skip
    cases = _changed(task, mine, theirs, roots_of_predictions(first, MediaRoots.of(roots)))
    page = environment().get_template("side_by_side.html.j2").render(title=title, results=results, cases=cases)
    write_json(Path(out) / DATA, results)
    write_text(Path(out) / PAGE, page)
    return results


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Return the shortest file or folder names that tell the runs apart."""
    for depth in range(1, max(len(first.parts), len(second.parts)) + 1):
        names = "/".join(first.with_suffix("").parts[-depth:]), "/".join(second.with_suffix("").parts[-depth:])
        if names[0] != names[1]:
            return names
    return "first", "second"


def _metrics(benchmark: Benchmark, mine: Answers, theirs: Answers) -> dict[str, dict[str, Any]]:
    compared = {}
    for column in benchmark.columns:
        test = compare_answers(column, mine, theirs)
        if test is None or math.isnan(test.difference):
            continue
        compared[column.key] = {
            "first": mine.table(column).score(interval=False).value,
            "second": theirs.table(column).score(interval=False).value,
            "difference": test.difference,
            "ci95": None if test.ci95 is None else list(test.ci95),
            "p_value": test.p_value,
            "n": test.n,
            "mcnemar": mcnemar(item_scores(column, mine), item_scores(column, theirs)),
        }
    return compared


def _groups(benchmark: Benchmark, mine: Answers, theirs: Answers) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the headline's comparison per value of each group key that splits the items."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for key in benchmark.groups:
        values = sorted({str(item.record[key]) for item in mine.items if item.record.get(key) not in (None, "")})
        if not 2 <= len(values) <= 40:
            continue
        for value in values:
            parts = [_only(run, key, value) for run in (mine, theirs)]
            compared = _metrics(benchmark, *parts).get(benchmark.headline)
            if compared:
                result.setdefault(key, {})[value] = compared
    return {key: values for key, values in result.items() if len(values) > 1}


def _only(run: Answers, key: str, value: str) -> Answers:
    return Answers([item for item in run.items if str(item.record.get(key)) == value])


def _changed(
    benchmark: Benchmark, mine: Answers, theirs: Answers, roots: MediaRoots
) -> dict[str, list[dict[str, Any]]]:
    """Return the cases that each run does better than the other, the largest differences first."""
    scores, others = single_scores(benchmark, mine), single_scores(benchmark, theirs)
    said = theirs.predictions()
    gains = {key: scores[key][1] - others[key][1] for key in scores if key in others}

    def pick(order: Callable[[float], float]) -> list[dict[str, Any]]:
        pool = [item for item in mine.items if order(gains.get(item.id, 0.0)) > 0]
        ranked = sorted(pool, key=lambda item: (-order(gains[item.id]), item.id))
        return [_case(item, said[item.id], scores[item.id], others[item.id][1], roots) for item in take_turns(ranked)]

    return {"better": pick(lambda gain: gain), "worse": pick(lambda gain: -gain)}


def _case(item: Item, other: str, score: tuple[str, float], other_score: float, roots: MediaRoots) -> dict[str, Any]:
    picture = draw_case(item, roots)
    return {
        "id": item.id,
        "task": str(item.record.get("task", "")),
        "question": item.question,
        "reference": item.reference,
        "first": item.prediction,
        "second": other,
        "metric": score[0],
        "first_score": score[1],
        "second_score": other_score,
        "picture": picture.uri,
        "note": picture.note,
    }
