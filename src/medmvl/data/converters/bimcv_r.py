"""BIMCV-R: chest CTs of Valencia with reports in Spanish and in machine-translated English.

Sources of the layout:
- The card of the hub's cyd0806/BIMCV-R (BIMCV-R.csv and folders named CT...), and the authors' MedFinder, which reads
  CT*/ct/*.nii.gz.
- The columns PatientID, ReportID, Report, Labels, Report_en, path and ct_path are those of the tables that
  github.com/fitushar/HAID makes from it; without ct_path, `path` names the file (MedFinder's table).
The release pairs some volumes with the report of another patient or session (1,332 of 7,518 rows by one public audit):
the file name says sub-S..._ses-E..., which is compared with PatientID and ReportID. The audit also found damaged NIfTI
headers and scans of other body parts.
There is no official split; MedFinder cuts the table at 80 % of its rows, which is not by patient.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Literal

from pydantic import Field

from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Rows, qa_record
from medmvl.data.converters.media import relative_media
from medmvl.data.converters.splits import draw_split
from medmvl.errors import DataError

PROMPT = "Generate a radiology report for the CT."
_TABLES = ("BIMCV-R.csv", "curated_ct_report_path_En.csv")
_REPORT = {"en": "Report_en", "es": "Report"}


class BimcvROptions(Options):
    """Settings of the BIMCV-R converter."""

    language: Literal["en", "es"] = Field("en", description="English (machine-translated) or Spanish reports")
    mismatched: Literal["drop", "keep"] = Field(
        "drop", description="rows whose file is of another patient or session than the report"
    )
    test_share: float = Field(0.2, ge=0, le=1, description="share of the patients that become 'test'; no official one")


def run(job: Job) -> Rows:
    """Yield one record per volume, in the order of the table."""
    table = next((path for name in _TABLES for path in job.find(name)), None)
    if table is None:
        raise DataError(f"{job.source} holds none of: {', '.join(_TABLES)}. Expected: {BIMCV_R.layout}")
    column = _REPORT[job.options.language]
    files = {path.name: path for path in (*job.source.glob("CT*/*.nii.gz"), *job.source.glob("CT*/ct/*.nii.gz"))}
    job.report.note("Split drawn by patient: there is no official one, and MedFinder's is not by patient.")
    for number, row in enumerate(job.rows(table, ["PatientID", "ReportID", "path", column])):
        name = Path(row.get("ct_path") or row["path"]).name
        patient, study = row["PatientID"], row["ReportID"]
        if not name.endswith((".nii.gz", ".nii")) or not patient:
            job.report.fault("row without a volume or a patient", f"row {number}")
            continue
        if job.options.mismatched == "drop" and not name.startswith(f"{patient}_{study}_"):
            job.report.skip("volume of another patient or session than its report")
            continue
        text = " ".join(row[column].split())
        if not text:
            job.report.fault("report is empty", name)
            continue
        path = relative_media(job, files.get(name, job.source / name), kind="volume")
        if path is None:
            continue
        split = draw_split(patient, job.options.test_share)
        yield (
            split,
            qa_record(
                f"bimcvr-{name.split('.')[0]}",
                PROMPT,
                text,
                volume=path,
                evaluation=split != "train",
                task="report",
                patient=patient,
                study=f"{patient}_{study}",
                finding_labels=_labels(row.get("Labels", "")) or None,
            ),
        )


def _labels(text: str) -> list[str]:
    """Return the labels of a cell such as "['nodule', ' pneumonia', '']"; [] for a cell of another form."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return (
        [label.strip() for label in found if isinstance(label, str) and label.strip()]
        if isinstance(found, list)
        else []
    )


BIMCV_R = DATASETS.add(
    "bimcv-r",
    Converter(
        name="bimcv-r",
        title="BIMCV-R (Chen et al., MICCAI 2024)",
        license="Academic research only, on approved application (the card's license field says MIT).",
        homepage="https://huggingface.co/datasets/cyd0806/BIMCV-R",
        layout="BIMCV-R.csv and CT<n>/ct/sub-S<n>_ses-E<n>_*.nii.gz (or CT<n>/*.nii.gz).",
        run=run,
        options=BimcvROptions,
    ),
)
