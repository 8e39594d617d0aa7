"""Where a score comes from: by kind of question, by finding, and how the closed answers fall."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.labels import findings_of, label_rows, labeller_of
from medmvl.evaluation.metrics.vqa import YES_NO, chosen_option, closed_correct, is_closed, options_of
from medmvl.evaluation.scoring import Answers, defined, score_columns
from medmvl.evaluation.tasks.base import Benchmark
from medmvl.evaluation.text import normalize_word

MAX_VALUES = 40  # a key with more distinct values than this is an identifier, not a kind of question
CONFIDENCE_BINS = 10


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


def by_finding(benchmark: Benchmark, items: list[Item]) -> dict[str, dict[str, float | int | None]]:
    """Return per finding the precision, recall and F1 of the reports, with the number of true and stated ones.

    Read by the labeller of the benchmark's label F1; empty if the benchmark has none or no record has labels.
    """
    columns = [column for column in benchmark.columns if labeller_of(column.metric) is not None]
    if not columns:
        return {}
    labeller = labeller_of(columns[0].metric)
    selected = columns[0].select(items)
    rows = [row for row in label_rows(selected, labeller) if row is not None] if labeller else []
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
        for name, hit, alarm, miss in zip(findings_of(selected), hits, false_alarms, misses, strict=True)
    }


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def closed_answers(items: Sequence[Item]) -> dict[str, Any]:
    """Return how the closed answers fall: a confusion table of yes/no, and how many answers commit to nothing.

    With a `confidence` on the rows (the probability of the answer, which `medmvl predict` writes) also the reliability:
    accuracy per bin of confidence and the expected calibration error (Naeini et al. 2015; bins of equal width, weighted
    by their share of answers).
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
    rated = [item for item in closed if isinstance(item.record.get("confidence"), int | float)]
    if rated:
        result["reliability"] = _reliability(rated)
    return result


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
    }
