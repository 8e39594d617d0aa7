"""PadChest-GR: reports of chest radiographs in English and Spanish, sentence by sentence, with boxes of the findings.

Sources of the layout: public readers of the release of 2024-08-19. grounded_reports_20240819.json is an array of studies
with StudyID, ImageID and findings of sentence_en, sentence_es, abnormal, boxes ([x1, y1, x2, y2], shares of the image's
width and height), labels, locations and progression; master_table.csv has StudyID, PatientID and split, a row per
sentence; the images are in Padchest_GR_files/ (also PadChest_GR/).
`extra_boxes` and the images of prior studies are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from medmvl.data.converters.checked import iter_objects
from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.converters.grounding import TASKS, Box, grounding_records, parse_tasks
from medmvl.data.converters.media import image_size, relative_media
from medmvl.data.converters.ms_cxr import SPLITS
from medmvl.data.tables import iter_json_array
from medmvl.errors import DataError

PROMPT = "Describe the given chest x-ray image in detail."  # Uni-Med's test prompt for radiographs
_FOLDERS = ("Padchest_GR_files", "PadChest_GR", "Padchest_GR_files/PadChest_GR", "")


class PadChestGrOptions(Options):
    """Settings of the PadChest-GR converter."""

    tasks: str = Field("report,refer,identify", description="comma-separated: report, refer, identify")
    language: Literal["en", "es"] = Field("en", description="language of the sentences")


def run(job: Job) -> Rows:
    """Yield the records of every study, in the order of the reports."""
    tasks = parse_tasks(job.options.tasks, ("report", *TASKS), "PadChest-GR")
    reports = next(iter(reversed(job.find("grounded_reports_*.json"))), None)
    table = next(iter(job.find("master_table.csv")), None)
    if reports is None or table is None:
        raise DataError(f"{job.source} holds no grounded_reports_*.json or no master_table.csv. {PADCHEST_GR.layout}")
    job.report.note("extra_boxes and the images of prior studies are not used.")
    rows = job.rows(table, ["StudyID", "PatientID", "split"])
    studies = {row["StudyID"]: (row["PatientID"], SPLITS.get(row["split"].lower())) for row in rows}
    for study in iter_objects(job, iter_json_array(reports), reports.name):
        identifier = str(study.get("StudyID", ""))
        patient, split = studies.get(identifier, ("", None))
        if split is None:
            job.report.fault("study is not in the table, or its split is not known", identifier)
            continue
        image = str(study.get("ImageID", ""))
        path = relative_media(job, *(reports.parent / folder / image for folder in _FOLDERS)) if image else None
        size = image_size(job.source / path) if path else None
        if path is None or size is None:
            job.report.fault("study without a readable image", identifier)
            continue
        facts = {"image": path, "evaluation": split != "train", "patient": f"p{patient}", "study": identifier}
        yield from ((split, record) for record in _study(job, study, size, tasks, facts))


def _study(
    job: Job, study: dict[str, Any], size: tuple[int, int], tasks: set[str], facts: dict[str, Any]
) -> Iterator[Record]:
    key = f"sentence_{job.options.language}"
    listed = study.get("findings") or []
    findings = list(iter_objects(job, listed if isinstance(listed, list) else [listed], f"study {study['StudyID']}"))
    findings = [finding for finding in findings if str(finding.get(key) or "").strip()]
    if not findings:
        job.report.skip("study without a sentence in the language asked for")
        return
    if "report" in tasks:
        text = " ".join(" ".join(str(finding[key]).split()) for finding in findings)
        labels = sorted(
            {label for finding in findings if finding.get("abnormal") for label in finding.get("labels") or []}
        )
        identifier = f"padchestgr-report-{study['StudyID']}"
        yield qa_record(identifier, PROMPT, text, task="report", finding_labels=labels or None, **facts)
    for number, finding in enumerate(findings):
        name = f"{study['StudyID']}-{number}"
        boxes = [_pixels(box, size) for box in finding.get("boxes") or []]
        if not boxes or not tasks & set(TASKS):
            continue
        if None in boxes:
            job.report.fault("box is not [x1, y1, x2, y2] between 0 and 1", name)
            continue
        yield from grounding_records(
            "padchestgr",
            name,
            " ".join(str(finding[key]).split()),
            [box for box in boxes if box is not None],
            size,
            tasks,
            finding_labels=finding.get("labels") or None,
            progression=finding.get("progression"),
            **facts,
        )


def _pixels(box: Any, size: tuple[int, int]) -> Box | None:
    """Return a box in pixels, or None if it is not four shares of the image in order."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        return None
    x1, y1, x2, y2 = map(float, box)
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        return None
    return x1 * size[0], y1 * size[1], (x2 - x1) * size[0], (y2 - y1) * size[1]


PADCHEST_GR = DATASETS.add(
    "padchest-gr",
    Converter(
        name="padchest-gr",
        title="PadChest-GR (de Castro et al., 2024)",
        license="BIMCV's research use agreement, accepted before download: no redistribution.",
        homepage="https://bimcv.cipf.es/bimcv-projects/padchest-gr/",
        layout="grounded_reports_20240819.json, master_table.csv and Padchest_GR_files/<image>.png.",
        run=run,
        options=PadChestGrOptions,
    ),
)
