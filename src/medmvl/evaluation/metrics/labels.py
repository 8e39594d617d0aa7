"""Label F1 of reports: do the generated reports state the findings that the labels say are there?

True labels come with the records (`labels`: {finding: 0 or 1}) or from a label file; predicted ones from a labeller run
over the generated text, or from a label file made by an outside labeller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from medmvl.errors import EvaluationError
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.base import Metric, Rows, ratio
from medmvl.evaluation.metrics.labeller import LABELLERS, Labeller
from medmvl.evaluation.statistics import Floats

PREDICTED = "predicted_labels"  # record key of labels made outside (filled from --predicted-labels)


def true_labels(item: Item) -> dict[str, int] | None:
    """Return the record's labels as {finding: 0 or 1}; uncertain (-1) counts as stated; None without labels."""
    labels = item.record.get("labels")
    if not isinstance(labels, Mapping) or not labels:
        return None
    return {str(name): int(float(value or 0) != 0) for name, value in labels.items()}


def predicted_labels(item: Item, labeller: Labeller) -> dict[str, int]:
    """Return the labels of the generated text: the record's own from outside if it has them, else the labeller's."""
    given = item.record.get(PREDICTED)
    if isinstance(given, Mapping):
        return {str(name): int(float(value or 0) != 0) for name, value in given.items()}
    return labeller(item.prediction)


def findings_of(items: Sequence[Item]) -> list[str]:
    """Return the findings that any record labels, sorted."""
    return sorted({name for item in items for name in (true_labels(item) or ())})


def label_rows(items: Sequence[Item], labeller: Labeller) -> Rows:
    """Return per item 3·L counts: true positives, false positives, false negatives of each of the L findings.

    Raises:
        EvaluationError: if the records label a finding that the labeller does not know.
    """
    findings = findings_of(items)
    rows: list[Sequence[float] | None] = []
    for item in items:
        truth = true_labels(item)
        if truth is None:
            rows.append(None)
            continue
        stated = predicted_labels(item, labeller)
        _check_known(item, findings, stated)
        # A finding that this record does not label adds nothing, neither right nor wrong.
        pairs = [(truth[name], stated[name]) if name in truth else (0, 0) for name in findings]
        hits = [float(t and p) for t, p in pairs]
        false_alarms = [float(p and not t) for t, p in pairs]
        misses = [float(t and not p) for t, p in pairs]
        rows.append([*hits, *false_alarms, *misses])
    return rows


def _check_known(item: Item, findings: Sequence[str], stated: Mapping[str, int]) -> None:
    unknown = [name for name in findings if name not in stated]
    if unknown:
        raise EvaluationError(
            f"Record {item.id!r} labels {unknown[0]!r}, which the labeller does not know. "
            f"It knows: {', '.join(stated)}. Choose another labeller or give predicted labels from a file."
        )


def per_finding_f1(sums: Floats) -> Floats:
    """Return F1 per finding (..., L) from (..., 3·L) counts; nan where neither side has the finding."""
    true_positive, false_positive, false_negative = np.split(sums, 3, axis=-1)
    return ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative)


def macro_f1(sums: Floats) -> Floats:
    """Return the unweighted mean of the defined per-finding F1; nan if none is."""
    scores = per_finding_f1(sums)
    return ratio(np.nansum(scores, axis=-1), np.sum(~np.isnan(scores), axis=-1).astype(np.float64))


def micro_f1(sums: Floats) -> Floats:
    """Return F1 of the counts summed over findings."""
    counts = np.stack([part.sum(axis=-1) for part in np.split(sums, 3, axis=-1)], axis=-1)
    return per_finding_f1(counts)[..., 0]


_NAME = re.compile(r"label-f1-(macro|micro)-(.+)")


def label_f1_kind(metric: Metric) -> str | None:
    """Return "macro" or "micro" for a label F1, None for another metric."""
    match = _NAME.fullmatch(metric.name)
    return match.group(1) if match else None


def labeller_of(metric: Metric) -> Labeller | None:
    """Return the labeller behind a label F1, or None for another metric."""
    match = _NAME.fullmatch(metric.name)
    return LABELLERS[match.group(2)] if match else None


def label_f1(kind: str, labeller_name: str) -> Metric:
    """Make the macro or micro label F1 with a named labeller.

    Args:
        kind: "macro" or "micro".
        labeller_name: a name in `LABELLERS`.
    """
    labeller = LABELLERS[labeller_name]
    average = "mean over findings that occur on either side" if kind == "macro" else "counts pooled over findings"
    return Metric(
        name=f"label-f1-{kind}-{labeller_name}",
        definition=f"{kind.capitalize()} F1 ({average}) of the findings stated in the generated report, read by the "
        f"labeller {labeller_name!r} (or a label file), against the records' labels.",
        rows=lambda items: label_rows(items, labeller),
        aggregate=macro_f1 if kind == "macro" else micro_f1,
        item_means=False,
    )
