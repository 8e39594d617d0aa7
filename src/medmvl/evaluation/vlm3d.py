"""Prediction files of the VLM3D challenge on CT-RATE: report generation and classification of 18 findings.

Reports: `[{"input_image_name", "report", "labels"?}]`; classification: `[{"input_image_name", "probabilities"}]`, where `labels` and
`probabilities` are lists in the order of `CT_RATE_FINDINGS` or mappings. Written from the challenge's description; its reference
scorers are not used.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.errors import EvaluationError, counted
from medmvl.evaluation.items import make_item
from medmvl.evaluation.metrics import METRICS
from medmvl.evaluation.metrics.auroc import auroc
from medmvl.evaluation.metrics.labeler import CT_RATE_PATTERNS, label_ct_rate
from medmvl.evaluation.scoring import score_metric
from medmvl.files import PathLike, read_json, write_json
from medmvl.progress_bar import track

CT_RATE_FINDINGS = tuple(CT_RATE_PATTERNS)
THRESHOLD = 0.5  # a finding is predicted from this probability on

#: Longest report: metrics of texts need more than linear time.
MOST_CHARACTERS = 100_000

Table = dict[str, dict[str, float]]
"""Image name (without folders and suffixes) -> {finding: value}."""


def image_name(path: str) -> str:
    """Return a file's name without folders and suffixes: "valid_1_a_1.nii.gz" -> "valid_1_a_1"."""
    return Path(path).name.split(".")[0]


def read_reports(path: PathLike) -> dict[str, str]:
    """Return {image name: report} of a report-generation file.

    Raises:
        DataError: if the file is missing or is not JSON.
        EvaluationError: if an entry is not as the challenge says, or an image occurs twice.
    """
    reports = {name: entry["report"] for name, entry in _entries(path, "report").items()}
    for name, report in reports.items():
        if not isinstance(report, str) or len(report) > MOST_CHARACTERS:
            raise EvaluationError(f"{path}, {name}: a report is a text of at most {MOST_CHARACTERS} characters.")
    return reports


def read_probabilities(path: PathLike) -> Table:
    """Return {image name: {finding: probability}} of a classification file.

    Raises:
        DataError: if the file is missing or is not JSON.
        EvaluationError: if an entry is not as the challenge says, or an image occurs twice.
    """
    return {
        name: _values(path, name, entry["probabilities"]) for name, entry in _entries(path, "probabilities").items()
    }


def _entries(path: PathLike, key: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    rows = read_json(path)
    if isinstance(rows, Mapping):  # some tools wrap the list
        rows = next((value for value in rows.values() if isinstance(value, list)), rows)
    if not isinstance(rows, list):
        raise EvaluationError(f"{path} holds no list. VLM3D files are [{{input_image_name, {key}}}, ...].")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or "input_image_name" not in row or key not in row:
            raise EvaluationError(f"{path}, entry {number}: it needs input_image_name and {key}.")
        name = image_name(str(row["input_image_name"]))
        if name in found:
            raise EvaluationError(f"{path}: {name} occurs twice. Keep one entry per image.")
        found[name] = dict(row)
    return found


def _values(path: PathLike, name: str, given: Any) -> dict[str, float]:
    """Return the 18 values of an entry by finding."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        given = dict(zip(CT_RATE_FINDINGS, given, strict=True)) if len(given) == len(CT_RATE_FINDINGS) else None
    if not isinstance(given, Mapping) or not set(CT_RATE_FINDINGS) <= set(given):
        raise EvaluationError(f"{path}, {name}: a value for each of the {len(CT_RATE_FINDINGS)} findings is needed.")
    values = [given[finding] for finding in CT_RATE_FINDINGS]
    if any(type(value) not in (int, float) or not 0 <= value <= 1 for value in values):
        raise EvaluationError(f"{path}, {name}: a probability is a number from 0 to 1.")
    return dict(zip(CT_RATE_FINDINGS, map(float, values), strict=True))


def write_reports(
    path: PathLike, reports: Mapping[str, str], labels: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Write a report-generation file; `labels` adds the 18 labels per image."""
    rows = []
    for name, report in reports.items():
        extra = {} if labels is None else {"labels": list(labels[name])}
        rows.append({"input_image_name": name, "report": report, **extra})
    write_json(path, rows)


def write_probabilities(path: PathLike, table: Mapping[str, Mapping[str, float]]) -> None:
    """Write a classification file."""
    write_json(
        path,
        [
            {"input_image_name": name, "probabilities": [row[key] for key in CT_RATE_FINDINGS]}
            for name, row in table.items()
        ],
    )


def classification_scores(probabilities: Table, truth: Table) -> dict[str, float]:
    """Return macro AUROC, precision, recall and F1, accuracy and CRG over the 18 findings at a threshold of 0.5.

    Findings without both classes have no AUROC and are left out of its mean; undefined precision, recall and F1 count as 0.

    Raises:
        EvaluationError: if a labeled image has no prediction.
    """
    missing = sorted(truth.keys() - probabilities.keys())
    if missing:
        raise EvaluationError(
            f"{counted(len(missing), 'image has', 'images have')} no prediction, the first is {missing[0]}. Predict all of them."
        )
    names = sorted(truth)
    actual = np.array([[truth[name][key] > 0 for key in CT_RATE_FINDINGS] for name in names])
    scores = np.array([[probabilities[name][key] for key in CT_RATE_FINDINGS] for name in names])
    said = scores >= THRESHOLD
    hits, alarms, misses = (actual & said).sum(axis=0), (~actual & said).sum(axis=0), (actual & ~said).sum(axis=0)

    def mean(parts: np.ndarray, wholes: np.ndarray) -> float:
        return float(np.divide(parts, wholes, out=np.zeros(len(parts)), where=wholes > 0).mean())

    areas = [
        auroc(scores[:, column].tolist(), actual[:, column].astype(int).tolist()) for column in range(scores.shape[1])
    ]
    return {
        "auroc_macro": float(np.nanmean(areas)) if not np.all(np.isnan(areas)) else float("nan"),
        "precision_macro": mean(hits, hits + alarms),
        "recall_macro": mean(hits, hits + misses),
        "f1_macro": mean(2 * hits, 2 * hits + alarms + misses),
        "accuracy": float((actual == said).mean()),
        "crg": crg_of_counts(int(hits.sum()), int(alarms.sum()), int(misses.sum()), actual.size),
    }


#: Word metrics of reports: key -> metric.
REPORT_METRICS = {f"bleu{order}": f"bleu{order}-coco-corpus-ptb" for order in (1, 2, 3, 4)} | {
    "rouge_l": "rouge-l",
    "meteor": "meteor-exact-stem",
}


def report_scores(reports: Mapping[str, str], references: Mapping[str, str], truth: Table) -> dict[str, float]:
    """Return the scores of generated reports: BLEU-1 to 4, ROUGE-L, METEOR, and precision, recall, F1, accuracy and CRG of the labels.

    The labels of the generated reports are read by `label_ct_rate`, not by the challenge's classifier.

    Args:
        reports: image name -> generated report.
        references: image name -> reference report.
        truth: image name -> {finding: 0 or 1} of the reference.

    Raises:
        EvaluationError: if a reference has no report.
    """
    missing = sorted(references.keys() - reports.keys())
    if missing:
        raise EvaluationError(
            f"{counted(len(missing), 'image has', 'images have')} no report, the first is {missing[0]}. Write all of them."
        )
    items = [
        make_item({"id": name, "question": "", "answer": text, "prediction": reports[name]})
        for name, text in sorted(references.items())
    ]
    words = {
        key: score_metric(METRICS[name], items, interval=False).value
        for key, name in track(REPORT_METRICS.items(), "metrics")
    }
    stated = {name: {key: float(value) for key, value in label_ct_rate(reports[name]).items()} for name in truth}
    labels = classification_scores(stated, truth)
    return words | {key: value for key, value in labels.items() if key != "auroc_macro"}


def validation_scans(reports: Mapping[str, str], not_chest: Iterable[str] = ()) -> list[str]:
    """Return the volumes of a corrected validation list: one per scan, chest only, and one per report text.

    By the challenge's description CT-RATE's 1 564 validation scans become 1 551 without other body parts and 1 493 unique ones. The
    tables are not shipped: the counts are tested on a drawn list of that size.

    Args:
        reports: volume name ("valid_1_a_1.nii.gz") -> report.
        not_chest: names of volumes of other body parts (`no_chest_valid.txt`).
    """
    excluded = {image_name(name).rpartition("_")[0] for name in not_chest}
    kept: list[str] = []
    scans: set[str] = set()
    texts: set[str] = set()
    for volume, text in sorted(reports.items(), key=lambda pair: _in_order(pair[0])):
        scan, words = image_name(volume).rpartition("_")[0], " ".join(text.split())
        if scan in scans or scan in excluded or words in texts:
            continue
        scans.add(scan)
        texts.add(words)
        kept.append(volume)
    return kept


def challenge_scores(
    truth: Table,
    *,
    reports: Mapping[str, str] | None = None,
    references: Mapping[str, str] | None = None,
    probabilities: Table | None = None,
    not_chest: Iterable[str] | None = None,
    training: tuple[Mapping[str, str], Table] | None = None,
) -> dict[str, dict[str, float]]:
    """Return the scores of a submission: `images` (how many), `classification`, `reports` and `table_baseline`, as far as given.

    Args:
        truth: image name -> {finding: 0 or 1}.
        reports, probabilities: the predictions.
        references: reference reports; needed for reports.
        not_chest: volumes of other body parts; if given, the volumes are those of `validation_scans`.
        training: training reports and labels. The baseline answers with the most frequent training report of the findings that
            `probabilities` predict.

    Raises:
        EvaluationError: if an image has no prediction, or no image has labels.
    """
    if not_chest is not None and references is not None:
        listed = set(validation_scans(references, not_chest))
        references = {name: text for name, text in references.items() if name in listed}
        truth = {name: row for name, row in truth.items() if name in listed}
    if not truth:
        raise EvaluationError("No image has labels. The names in the tables must be those of one data set.")
    scores: dict[str, dict[str, float]] = {"images": {"count": len(truth)}}
    if probabilities is not None:
        scores["classification"] = classification_scores(probabilities, truth)
    if references is not None:
        references = {name: text for name, text in references.items() if name in truth}
    if reports is not None and references is not None:
        scores["reports"] = report_scores(reports, references, truth)
    if training is not None and probabilities is not None and references is not None:
        scores["table_baseline"] = report_scores(_baseline_reports(probabilities, *training), references, truth)
    return scores


def _baseline_reports(probabilities: Table, reports: Mapping[str, str], labels: Table) -> dict[str, str]:
    pairs = [
        ([int(labels[name][key]) for key in CT_RATE_FINDINGS], text) for name, text in reports.items() if name in labels
    ]
    baseline = table_baseline(pairs)
    return {
        name: baseline.report([int(row[key] >= THRESHOLD) for key in CT_RATE_FINDINGS])
        for name, row in probabilities.items()
    }


def _in_order(volume: str) -> list[tuple[int, str]]:
    """Return a key that sorts "valid_2_a_1" before "valid_10_a_1"."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in image_name(volume).split("_")]


def crg_of_counts(hits: int, alarms: int, misses: int, labels: int) -> float:
    """Return CRG from counts over all findings and exams; nan without a positive or a negative label.

    With A = hits + misses positives of X labels, r = (X - A) / 2A and U = (X - A) / 2: s = r * hits - r * misses - alarms, and
    CRG = U / (2U - s).
    """
    positives = hits + misses
    half = (labels - positives) / 2
    if not positives or not half:
        return float("nan")
    weight = half / positives
    return half / (2 * half - (weight * hits - weight * misses - alarms))


def table_baseline(train: Iterable[tuple[Sequence[int], str]]) -> TableBaseline:
    """Return the baseline that answers with the most frequent training report of a label combination."""
    counts: dict[tuple[int, ...], Counter[str]] = defaultdict(Counter)
    for labels, report in train:
        counts[tuple(labels)][report] += 1
    if not counts:
        raise EvaluationError("The table baseline needs at least one training report.")
    return TableBaseline({key: min(texts, key=lambda t: (-texts[t], t)) for key, texts in counts.items()})


class TableBaseline:
    """A table from label combinations to texts: a strong trivial baseline of report generation.

    It knows no image beyond 18 labels of a classifier, yet label-based metrics (CRG, F1) reward it as much as a model that
    writes new reports with the same labels. Compare a model with it before reading those metrics as report quality.
    """

    def __init__(self, table: Mapping[tuple[int, ...], str]) -> None:
        self.table = dict(table)

    def report(self, labels: Sequence[int]) -> str:
        """Return the text of the known combination with the fewest different labels; ties go to the first in order."""
        wanted = tuple(labels)
        return self.table[min(self.table, key=lambda key: (sum(a != b for a, b in zip(key, wanted, strict=True)), key))]
