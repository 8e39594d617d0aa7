"""Breakdown of scores by kind of question and by finding, and statistics of closed answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.auroc import auroc
from medmvl.evaluation.metrics.labels import findings_of, label_rows, labeler_of
from medmvl.evaluation.metrics.measured import BRIER, confidence_of
from medmvl.evaluation.metrics.vqa import YES_NO, chosen_option, closed_correct, is_closed, options_of
from medmvl.evaluation.report_findings import report_findings
from medmvl.evaluation.scoring import Answers, defined, score_columns, score_metric
from medmvl.evaluation.tasks.benchmark import Benchmark, Column, Grouping
from medmvl.evaluation.text import normalize_word

MAX_VALUES = 40  # a key with more distinct values than this is an identifier, not a kind of question
CONFIDENCE_BINS = 10
MAX_POINTS = 200  # of a curve in the report


def by_group(benchmark: Benchmark, answers: Answers) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {record key: {value: {metric: entry}}} for the benchmark's group keys that split the items."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for key in benchmark.groups:
        values = sorted({value for item in answers.items if (value := _value(item, key))})
        if 2 <= len(values) <= MAX_VALUES:
            result[key] = {value: _scores_of(benchmark, answers, key, value) for value in values}
    return result


def _value(item: Item, key: str) -> str:
    """Return the item's value of a group key as a word, "" where it has none."""
    value = item.record.get(key)
    return str(value) if isinstance(value, str | int | bool) else ""


def _scores_of(benchmark: Benchmark, answers: Answers, key: str, value: str) -> dict[str, dict[str, Any]]:
    return defined(score_columns(benchmark, answers, lambda item: _value(item, key) == value))


def by_grouping(
    benchmark: Benchmark, answers: Answers, controls: Mapping[str, Answers]
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Return {grouping: {value: {metric: entry}}} for the benchmark's groupings that split the items.

    An entry has the keys of a score and `controls`: {control: its value on the same questions}.
    """
    result: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for grouping in benchmark.groupings:
        keys = [column.key for column in benchmark.columns]
        columns = [benchmark.column(key) for key in grouping.columns if key in keys]
        values = sorted({value for item in answers.items if (value := grouping.value(item))})
        found = {value: _group_scores(columns, grouping, value, answers, controls) for value in values}
        found = {value: scores for value, scores in found.items() if scores}
        if len(found) > 1:
            result[grouping.name] = found
    return result


def _group_scores(
    columns: Sequence[Column], grouping: Grouping, value: str, answers: Answers, controls: Mapping[str, Answers]
) -> dict[str, dict[str, Any]]:
    """Return {metric: entry} of the items with one value of a grouping."""

    def belongs(item: Item) -> bool:
        return grouping.value(item) == value

    scores = {}
    for column in columns:
        score = answers.table(column).only(belongs).score()
        if math.isnan(score.value):
            continue
        theirs = {
            name: control.table(column).only(belongs).score(interval=False).value for name, control in controls.items()
        }
        known = {name: found for name, found in theirs.items() if not math.isnan(found)}
        scores[column.key] = {**score.to_dict(), "controls": known}
    return scores


def by_finding(benchmark: Benchmark, items: list[Item]) -> dict[str, dict[str, float | int | None]]:
    """Return per finding the precision, recall and F1 of the reports, with the number of true and stated ones.

    Read by the labeler of the benchmark's label F1; empty if the benchmark has none or no record has labels.
    """
    columns = [column for column in benchmark.columns if labeler_of(column.metric) is not None]
    if not columns:
        return {}
    labeler = labeler_of(columns[0].metric)
    assert labeler is not None
    selected = columns[0].select(items)
    rows = [row for row in label_rows(selected, labeler) if row is not None]
    if not rows:
        return {}
    hits, false_alarms, misses = np.split(np.sum(np.array(rows), axis=0), 3)
    return {
        name: {
            "present": int(hit + miss),
            "stated": int(hit + alarm),
            "precision": _share(hit, hit + alarm),
            "recall": _share(hit, hit + miss),
            "f1": _share(2 * hit, 2 * hit + alarm + miss),
        }
        for name, hit, alarm, miss in zip(findings_of(selected, labeler), hits, false_alarms, misses, strict=True)
    }


def report_findings_of(benchmark: Benchmark, items: list[Item]) -> dict[str, dict[str, Any]]:
    """Return the finding-level measures of reports (see `report_findings`); empty for a benchmark without label F1."""
    for column in benchmark.columns:
        labeler = labeler_of(column.metric)
        if labeler is not None:
            return report_findings(column.select(items), labeler)
    return {}


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def closed_answers(items: Sequence[Item]) -> dict[str, Any]:
    """Return a confusion table of the yes/no answers, and how many answers state no option.

    With a `confidence` on the rows (the probability of the answer, which `medmvl predict` writes) also the reliability:
    accuracy per bin of confidence and the expected calibration error (Naeini et al. 2015; bins of equal width, weighted
    by their share of answers), the Brier score, and risk over coverage. With `probabilities` ({"yes": 0.8, "no": 0.2}) the AUROC of yes/no questions.
    """
    closed = [item for item in items if is_closed(item) and not item.chinese]
    if not closed:
        return {}
    table: Counter[tuple[str, str]] = Counter()
    undecided = 0
    for item in closed:
        options = options_of(item)
        chosen = chosen_option(item.hypothesis, options) if options else normalize_word(item.hypothesis) or None
        undecided += chosen is None
        truth = normalize_word(item.target)
        if truth in YES_NO:
            table[truth, chosen or "undecided"] += 1
    result: dict[str, Any] = {"n": len(closed), "undecided": undecided, "yes_no": None, "reliability": None}
    if table:
        result["yes_no"] = {truth: {said: table[truth, said] for said in (*YES_NO, "undecided")} for truth in YES_NO}
        yes, no = result["yes_no"]["yes"], result["yes_no"]["no"]
        result["sensitivity"] = _share(yes["yes"], sum(yes.values()))
        result["specificity"] = _share(no["no"], sum(no.values()))
    result["auroc"] = _auroc(closed)
    rated = [item for item in closed if isinstance(item.record.get("confidence"), int | float)]
    if rated:
        result["reliability"] = _reliability(rated)
    return result


def _auroc(items: Sequence[Item]) -> dict[str, Any] | None:
    """Return the AUROC of the yes/no questions whose rows have `probabilities`; None without both answers among them.

    The score of an item is P(yes) / (P(yes) + P(no)).
    """
    scores, truths = [], []
    for item in items:
        given, truth = item.record.get("probabilities"), normalize_word(item.target)
        if truth in YES_NO and isinstance(given, Mapping):
            yes, no = (given.get(word) for word in YES_NO)
            if isinstance(yes, int | float) and isinstance(no, int | float) and yes >= 0 and no >= 0 and yes + no > 0:
                scores.append(yes / (yes + no))
                truths.append(int(truth == "yes"))
    value = auroc(scores, truths)
    return None if math.isnan(value) else {"value": value, "n": len(scores)}


def _reliability(items: Sequence[Item]) -> dict[str, Any]:
    bins: list[list[tuple[float, float]]] = [[] for _ in range(CONFIDENCE_BINS)]
    for item in items:
        confidence = min(1.0, max(0.0, float(item.record["confidence"])))
        bins[min(int(confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)].append((confidence, closed_correct(item)))
    filled = [
        {
            "confidence": math.fsum(pair[0] for pair in pairs) / len(pairs),
            "accuracy": math.fsum(pair[1] for pair in pairs) / len(pairs),
            "n": len(pairs),
        }
        for pairs in bins
        if pairs
    ]
    gaps = math.fsum(entry["n"] * abs(entry["confidence"] - entry["accuracy"]) for entry in filled)
    total = len(items)
    return {
        "bins": filled,
        "expected_calibration_error": gaps / total,
        "confidence": math.fsum(entry["n"] * entry["confidence"] for entry in filled) / total,
        "accuracy": math.fsum(entry["n"] * entry["accuracy"] for entry in filled) / total,
        "n": total,
        "brier": score_metric(BRIER, items).to_dict(),
        "risk_coverage": risk_coverage(items),
    }


def risk_coverage(items: Sequence[Item]) -> dict[str, Any]:
    """Return the share of wrong answers among the surest ones, over the share that is answered, and the mean of the curve.

    Geifman and El-Yaniv 2017 (arXiv:1705.08500). Answers of equal confidence are answered together.
    """
    pairs = sorted(((confidence_of(item) or 0.0, closed_correct(item)) for item in items), reverse=True)
    points: list[list[float]] = []
    wrong = area = 0.0
    for place, (confidence, correct) in enumerate(pairs, start=1):
        wrong += 1 - correct
        if place == len(pairs) or pairs[place][0] < confidence:
            before = points[-1][0] if points else 0.0
            points.append([place / len(pairs), wrong / place])
            area += (points[-1][0] - before) * points[-1][1]
    kept = points[:: max(1, -(-len(points) // MAX_POINTS))]
    kept = kept if kept[-1] == points[-1] else [*kept, points[-1]]
    return {"area": area, "points": [[float(f"{x:.4g}"), float(f"{y:.4g}")] for x, y in kept]}
