"""Options of an evaluation: the data to score with, the scorers, the limits for faulty rows, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_FAULTY = 0.01  # share of faulty rows that is reported but tolerated


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """How predictions are scored and reported.

    Attributes:
        references: records that should have been answered, to find missing and unknown ids.
        labels: label file with the true findings of reports, for records that carry none.
        predicted_labels: label file with the findings of the generated reports, made by another labeler.
        labeler: a name in `LABELERS` that replaces the benchmark's own labeler.
        profile: a name in `PROFILES`: score by another published protocol than the benchmark's own.
        radeval: clinical metrics to add through RadEval (names in `radeval.LOCAL_METRICS`).
        strict: stop at the first faulty row.
        max_faulty: share of faulty rows above which the evaluation raises, after it has written its files.
        log: log.jsonl of a run, or its rows with `stage`, `step` and `loss`, for the loss curve.
        title: heading of the report.
        keys: our key -> key in the predictions file, for files of other tools ("id", "question", "answer", "prediction", ...).
        box_format: format of boxes in the answers (a name in `FORMATS`), for records without their own `box_format`.
    """

    references: Path | None = None
    labels: Path | None = None
    predicted_labels: Path | None = None
    labeler: str | None = None
    profile: str | None = None
    radeval: Sequence[str] = ()
    strict: bool = False
    max_faulty: float = MAX_FAULTY
    log: Path | Sequence[Mapping[str, Any]] | None = None
    title: str = "MedM-VL evaluation"
    keys: Mapping[str, str] = field(default_factory=dict)
    box_format: str | None = None
