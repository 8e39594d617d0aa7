"""Findings in generated reports: hallucinated and missed findings, sides, macro precision and recall, and CRG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medmvl.evaluation.items import Item, group_by_patient
from medmvl.evaluation.metrics.labeler import Labeler, finding_sides
from medmvl.evaluation.metrics.labels import findings_of, label_rows, macro_f1, micro_f1, true_labels
from medmvl.evaluation.metrics.metric import ratio
from medmvl.evaluation.statistics import Floats, bootstrap_interval, cluster_sums


def report_findings(items: Sequence[Item], labeler: Labeler) -> dict[str, dict[str, Any]]:
    """Return {name: {"value", "n", "ci95"}} of finding-level measures; empty if no record has labels.

    - `hallucinated_per_report`, `missed_per_report`: findings stated but absent, and present but not stated, per report.
    - `hallucinated_share`, `missed_share`: the same out of all stated, and of all present findings.
    - `laterality_errors`: of the findings that reference and prediction state with a side, the share without a common side.
    - `precision_macro`, `recall_macro`, `f1_macro`, `f1_micro`: over findings; undefined ones are left out.
    - `crg`: see `crg`.

    Args:
        items: reports.
        labeler: reads the predictions.
    """
    rows = label_rows(items, labeler)
    kept = [item for item, row in zip(items, rows, strict=True) if row is not None]
    if not kept:
        return {}
    counts = np.array([row for row in rows if row is not None], dtype=np.float64)
    known = labeler("")
    extra = np.array([[1.0, len(true_labels(item, known) or ()), *_sides(item)] for item in kept])
    sums = cluster_sums(np.hstack([counts, extra]), list(group_by_patient(kept).values()))
    width = len(findings_of(items, labeler))
    found = {}
    for name, measure in MEASURES.items():

        def aggregate(values: Floats, measure: Callable[[Floats, int], Floats] = measure) -> Floats:
            return measure(values, width)

        value = float(aggregate(sums.sum(axis=0)))
        if not np.isnan(value):
            ci95 = bootstrap_interval(sums, aggregate)
            found[name] = {"value": value, "n": len(kept), "ci95": None if ci95 is None else list(ci95)}
    return found


def _sides(item: Item) -> tuple[float, float]:
    """Return (findings with a side on both sides of the comparison, those without a common side)."""
    truth, said = finding_sides(item.reference), finding_sides(item.prediction)
    both = [name for name in truth if truth[name] and said.get(name)]
    return float(len(both)), float(sum(not truth[name] & said[name] for name in both))


def _counts(sums: Floats, width: int) -> tuple[Floats, Floats, Floats]:
    """Return true positives, false positives and false negatives, (..., width) each."""
    return sums[..., :width], sums[..., width : 2 * width], sums[..., 2 * width : 3 * width]


def _column(sums: Floats, width: int, index: int) -> Floats:
    return sums[..., 3 * width + index]


def _macro(parts: Floats, wholes: Floats) -> Floats:
    """Return the mean over findings (last axis) of part / whole where the whole is not 0."""
    shares = ratio(parts, wholes)
    return ratio(np.nansum(shares, axis=-1), np.sum(~np.isnan(shares), axis=-1).astype(np.float64))


def crg(sums: Floats, width: int) -> Floats:
    """Return the CRG score of the VLM3D challenge from (..., 3 * width + 4) summed counts.

    With X labels in all reports, A of them positive, r = (X - A) / 2A and U = (X - A) / 2, the score is
    s = r * TP - r * FN - FP, and CRG = U / (2U - s): 1 for perfect reports, 1/3 for reports without any finding.
    """
    true_positive, false_positive, false_negative = (part.sum(axis=-1) for part in _counts(sums, width))
    positives = true_positive + false_negative
    half = (_column(sums, width, 1) - positives) / 2
    weight = ratio(half, positives)
    score = weight * true_positive - weight * false_negative - false_positive
    return ratio(half, 2 * half - score)


def _per_report(part: int) -> Callable[[Floats, int], Floats]:
    return lambda sums, width: ratio(_counts(sums, width)[part].sum(axis=-1), _column(sums, width, 0))


def _share(part: int) -> Callable[[Floats, int], Floats]:
    def share(sums: Floats, width: int) -> Floats:
        counts = _counts(sums, width)
        wrong = counts[part].sum(axis=-1)
        return ratio(wrong, wrong + counts[0].sum(axis=-1))

    return share


MEASURES: Mapping[str, Callable[[Floats, int], Floats]] = {
    "hallucinated_per_report": _per_report(1),
    "missed_per_report": _per_report(2),
    "hallucinated_share": _share(1),
    "missed_share": _share(2),
    "laterality_errors": lambda sums, width: ratio(_column(sums, width, 3), _column(sums, width, 2)),
    "precision_macro": lambda sums, width: _macro(
        _counts(sums, width)[0], _counts(sums, width)[0] + _counts(sums, width)[1]
    ),
    "recall_macro": lambda sums, width: _macro(
        _counts(sums, width)[0], _counts(sums, width)[0] + _counts(sums, width)[2]
    ),
    "f1_macro": lambda sums, width: macro_f1(sums[..., : 3 * width]),
    "f1_micro": lambda sums, width: micro_f1(sums[..., : 3 * width]),
    "crg": crg,
}
