"""Merlin: abdominal CT with findings texts and zero-shot disease labels (Stanford AIMI)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.converters.media import relative_media
from medmvl.errors import DataError

PROMPT = "Generate a radiology report for the CT."
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_IMPRESSION = re.compile(r"\bimpression\s*:", re.IGNORECASE)


class MerlinOptions(Options):
    """Settings of the Merlin converter."""

    impression: Literal["cut", "keep"] = Field(
        "cut", description='what to do with an "IMPRESSION:" inside the findings'
    )


def run(job: Job) -> Rows:
    """Yield one report record per study."""
    reports = next((f for p in ("reports_final.xlsx", "reports_final.csv") for f in job.find(p)), None)
    if reports is None:
        raise DataError(f"{job.source} holds no reports_final.xlsx. {MERLIN.layout}")
    labels = _labels(job)
    for row in job.rows(reports):
        names = {_plain(key): key for key in row}
        study = row[_column(names, ("study id", "studyid", "id"), reports)]
        text = row[_column(names, ("findings", "findings text", "report", "text"), reports)]
        split = row[_column(names, ("split",), reports)].lower()
        record = _record(job, study, text, labels.get(study), _SPLITS.get(split, split) != "train")
        if record is not None:
            yield _SPLITS.get(split, split) or "train", record


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _column(names: dict[str, str], wanted: Iterable[str], file: Path) -> str:
    """Return a column's spelling in the table; the published descriptions leave it open."""
    found = next((names[name] for name in wanted if name in names), None)
    if found is None:
        raise DataError(f"{file} lacks a column for {next(iter(wanted))!r}. It has: {', '.join(names.values())}.")
    return found


def _labels(job: Job) -> dict[str, dict[str, int]]:
    """Return study -> disease -> 1, 0 or -1 (not mentioned), if the table is there."""
    file = next(iter(job.find("zero_shot_findings_disease_cls.csv")), None)
    if file is None:
        return {}
    table = {}
    for row in job.rows(file):
        key = next((k for k in row if _plain(k) in ("study id", "studyid")), next(iter(row)))
        table[row[key]] = {k: int(float(v)) for k, v in row.items() if k != key and re.fullmatch(r"-?\d+(\.0)?", v)}
    return table


def _record(job: Job, study: str, text: str, labels: dict[str, int] | None, evaluation: bool) -> Record | None:
    if job.options.impression == "cut":
        text = _IMPRESSION.split(text, maxsplit=1)[0]
    text = " ".join(text.split())
    if not text:
        job.report.fault("findings are empty", study)
        return None
    folders = (job.source / "merlin_data", job.source / "merlinabdominalctdataset" / "merlin_data", job.source)
    path = relative_media(job, *(f / f"{study}{s}" for f in folders for s in (".nii.gz", ".nii")), kind="volume")
    if path is None:
        return None
    # The tables name studies, not patients: 25,494 scans are of 18,317 patients.
    job.report.note(
        "Merlin's report table names no patients: `patient` is the study, so intervals are a little too narrow."
    )
    return qa_record(
        f"merlin-{study}",
        PROMPT,
        text,
        volume=path,
        evaluation=evaluation,
        task="report",
        patient=study,
        labels=labels,
        label_convention="merlin" if labels else None,
    )


MERLIN = DATASETS.add(
    "merlin",
    Converter(
        name="merlin",
        title="Merlin abdominal CT (Blankemeier et al., 2024)",
        license="Stanford AIMI data use agreement: non-commercial research, no redistribution.",
        homepage="the Stanford AIMI portal (form and data use agreement; fetched with azcopy)",
        layout="merlin_data/<study>.nii.gz, reports_final.xlsx and zero_shot_findings_disease_cls.csv.",
        run=run,
        options=MerlinOptions,
    ),
)
