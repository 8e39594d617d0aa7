"""Label F1 of generated reports against labels of findings.

True labels come with the records (`labels`: {finding: value}) or from a label file, and are read under the convention of their
source. Predicted ones come from a labeler run over the generated text, or from a label file made by another labeler.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from medmvl.errors import EvaluationError
from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics.label_conventions import convention_of
from medmvl.evaluation.metrics.labeler import LABELERS, Labeler
from medmvl.evaluation.metrics.metric import Metric, Rows, ratio
from medmvl.evaluation.statistics import Floats

PREDICTED = "predicted_labels"  # record key of labels made outside (filled from --predicted-labels)


def true_labels(item: Item, known: Collection[str] = ()) -> dict[str, int] | None:
    """Return the record's labels as {finding: 0 or 1} under the convention of their source; None without labels.

    Args:
        item: the report.
        known: findings of the labeler, see `convention_of`.
    """
    return _read(item, "labels", known)


def _read(item: Item, key: str, known: Collection[str]) -> dict[str, int] | None:
    labels = item.record.get(key)
    if not isinstance(labels, Mapping) or not labels:
        return None
    convention = convention_of({**item.record, "labels": labels}, known)
    try:
        return convention.read(labels)
    except (TypeError, ValueError) as error:
        raise EvaluationError(
            f"Record {item.id!r} has a label that cannot be read: {error}. Use 1, 0, -1 or an empty value."
        ) from error


def predicted_labels(item: Item, labeler: Labeler) -> dict[str, int]:
    """Return the labels of the generated text: those of a label file if the record has them, else the labeler's."""
    given = _read(item, PREDICTED, labeler(""))
    if given is None:
        return labeler(item.prediction)
    # A finding that the prediction's source ignores (not mentioned) is not stated.
    return {**dict.fromkeys(item.record[PREDICTED], 0), **given}


def findings_of(items: Sequence[Item], labeler: Labeler) -> list[str]:
    """Return the findings that any record labels, sorted."""
    known = labeler("")
    return sorted({name for item in items for name in (true_labels(item, known) or ())})


def label_rows(items: Sequence[Item], labeler: Labeler) -> Rows:
    """Return per item 3·L counts: true positives, false positives, false negatives of each of the L findings.

    Raises:
        EvaluationError: if the records label a finding that the labeler does not know.
    """
    findings, known = findings_of(items, labeler), labeler("")
    rows: list[Sequence[float] | None] = []
    for item in items:
        truth = true_labels(item, known)
        if truth is None:
            rows.append(None)
            continue
        stated = predicted_labels(item, labeler)
        _check_known(item, findings, stated)
        # A finding that this record does not label counts neither as right nor as wrong.
        pairs = [(truth[name], stated[name]) if name in truth else (0, 0) for name in findings]
        hits = [float(t and p) for t, p in pairs]
        false_alarms = [float(p and not t) for t, p in pairs]
        misses = [float(t and not p) for t, p in pairs]
        rows.append([*hits, *false_alarms, *misses])
    return rows


def _check_known(item: Item, findings: Sequence[str], stated: Mapping[str, int]) -> None:
    unknown = [name for name in (*item.record["labels"], *findings) if name in findings and name not in stated]
    if unknown:
        raise EvaluationError(
            f"Record {item.id!r} labels {unknown[0]!r}, which the labeler does not know. "
            f"It knows: {', '.join(stated)}. Choose another labeler or give predicted labels from a file."
        )


def per_finding_f1(sums: Floats) -> Floats:
    """Return F1 per finding (..., L) from (..., 3·L) counts; nan where neither side has the finding."""
    true_positive, false_positive, false_negative = np.split(sums, 3, axis=-1)
    return ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative)


def macro_f1(sums: Floats) -> Floats:
    """Return the unweighted mean of the defined per-finding F1; nan if none is defined.

    Args:
        sums: (..., 3 * findings): true positives, false positives and false negatives of each finding.
    """
    scores = per_finding_f1(sums)
    return ratio(np.nansum(scores, axis=-1), np.sum(~np.isnan(scores), axis=-1).astype(np.float64))


def micro_f1(sums: Floats) -> Floats:
    """Return F1 of the counts summed over findings.

    Args:
        sums: (..., 3 * findings), as for `macro_f1`.
    """
    counts = np.stack([part.sum(axis=-1) for part in np.split(sums, 3, axis=-1)], axis=-1)
    return per_finding_f1(counts)[..., 0]


_NAME = re.compile(r"label-f1-(macro|micro)-(.+)")


def label_f1_kind(metric: Metric) -> str | None:
    """Return "macro" or "micro" for a label F1, None for another metric."""
    match = _NAME.fullmatch(metric.name)
    return match.group(1) if match else None


def labeler_of(metric: Metric) -> Labeler | None:
    """Return the labeler behind a label F1, or None for another metric."""
    match = _NAME.fullmatch(metric.name)
    return LABELERS[match.group(2)] if match else None


def label_f1(kind: str, labeler_name: str) -> Metric:
    """Make the macro or micro label F1 with a named labeler.

    Args:
        kind: "macro" or "micro".
        labeler_name: a name in `LABELERS`.
    """
    labeler = LABELERS[labeler_name]
    average = "mean over findings that occur on either side" if kind == "macro" else "counts pooled over findings"
    return Metric(
        name=f"label-f1-{kind}-{labeler_name}",
        definition=f"{kind.capitalize()} F1 ({average}) of the findings stated in the generated report, read by the "
        f"labeler {labeler_name!r} (or a label file), against the records' labels under the convention of their source.",
        version="2",
        rows=lambda items: label_rows(items, labeler),
        aggregate=macro_f1 if kind == "macro" else micro_f1,
        item_means=False,
    )
