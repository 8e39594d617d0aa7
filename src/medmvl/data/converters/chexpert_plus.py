"""CheXpert Plus: chest radiographs of Stanford with reports and CheXbert labels, one record per study.

Sources of the layout:
- df_chexpert_plus_240401.csv: a row per image, in which the report of its study is repeated. The columns, and the label
  files {findings,impression,report}_fixed.json (JSON Lines with `path_to_image`; 1, 0, -1 or null), are in RadHarmony,
  harmonizer/chexpert/chexpert_plus.py; other readers keep the label files in chexbert_labels/.
- The images: PNG/PNG/{train,valid}/patient42142/study5/view1_frontal.png (the table says .jpg, as a TFDS reader notes),
  DICOM/Uncompressed/..., or the JPEG files of CheXpert-v1.0 and CheXpert-v1.0-small, which have the same paths.
The official split is train and valid; CheXpert's test images have no reports here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medmvl.data.converters.checked import finite_numbers, iter_objects
from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.converters.media import relative_media
from medmvl.data.converters.reports import report_text
from medmvl.data.sample import IMAGE_PLACEHOLDER
from medmvl.errors import DataError
from medmvl.files import iter_jsonl

TABLE = "df_chexpert_plus_240401.csv"
PROMPT = "Describe the given chest x-ray image in detail."  # Uni-Med's test prompt for radiographs
SPLITS = {"train": "train", "valid": "validation"}
FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion"),
    *(
        "Lung Opacity",
        "No Finding",
        "Pleural Effusion",
        "Pleural Other",
        "Pneumonia",
        "Pneumothorax",
        "Support Devices",
    ),
)
#: kind of image -> suffix and the folders below the source
_IMAGES = {
    "png": (".png", ("PNG/PNG", "PNG", "")),
    "jpg": (".jpg", ("CheXpert-v1.0", "CheXpert-v1.0-small", "")),
    "dicom": (".dcm", ("DICOM/Uncompressed", "DICOM", "")),
}
_INSIDE = re.compile(r"(?P<split>train|valid)/(?P<patient>patient\d+)/(?P<study>study\d+)/[^/]+$")


class ChexpertPlusOptions(Options):
    """Settings of the CheXpert Plus converter."""

    images: Literal["auto", "png", "jpg", "dicom"] = Field("auto", description="which files to name in the records")
    views: Literal["frontal", "all"] = Field("frontal", description="frontal images only, or lateral ones, too")
    per_study: Literal["first", "all"] = Field("first", description="one image of a study, or all of its views")
    target: Literal["both", "findings", "impression"] = Field("both", description="which sections to write")
    labels: Literal["report", "findings", "impression", "none"] = Field(
        "report", description="CheXbert labels of the whole report, of one of its sections, or none"
    )


def run(job: Job) -> Rows:
    """Yield one record per study, in the order of the table."""
    table = next(iter(job.find(TABLE)), None)
    if table is None:
        raise DataError(f"{job.source} holds no {TABLE}. Expected: {CHEXPERT_PLUS.layout}")
    labels = _labels(job)
    studies = _studies(job, table)
    for row in job.rows(table, ["path_to_image", "section_findings", "section_impression"]):
        inside = _INSIDE.search(row["path_to_image"])
        # The table is read twice, so that the reports need not be kept: a study is converted at its first row.
        images = studies.pop(inside[0].rsplit("/", 1)[0], None) if inside else None
        if inside and images:
            record = _record(job, inside, row, images, labels)
            if record is not None:
                yield SPLITS[inside["split"]], record


def _studies(job: Job, table: Path) -> dict[str, list[tuple[str, str]]]:
    """Return study folder -> (path, view) of its images, frontal ones first."""
    studies: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in job.rows(table, ["path_to_image", "frontal_lateral"]):
        inside = _INSIDE.search(row["path_to_image"])
        if inside is None:
            job.report.fault("path is not train|valid/patient<n>/study<n>/<image>", row["path_to_image"][:80])
            continue
        view = row["frontal_lateral"].capitalize()
        studies[inside[0].rsplit("/", 1)[0]].append(
            (inside[0], row.get("ap_pa") or view if view == "Frontal" else view)
        )
    return {
        name: sorted(images, key=lambda image: (image[1] == "Lateral", image[0])) for name, images in studies.items()
    }


def _labels(job: Job) -> dict[str, dict[str, int]]:
    """Return study folder -> finding -> 1 present, 0 absent, -1 uncertain; a finding that is not mentioned has no key."""
    if job.options.labels == "none":
        return {}
    name = f"{job.options.labels}_fixed.json"
    file = next(iter(job.find(name)), None)
    if file is None:
        job.report.note(f"No {name}: the records carry no labels.")
        return {}
    job.report.note(
        f"Labels are CheXbert's, of {name}: 1 present, 0 absent, -1 uncertain; findings that are not mentioned are left out."
    )
    labels = {}
    for row in iter_objects(job, iter_jsonl(file), file.name):
        inside = _INSIDE.search(str(row.get("path_to_image", "")))
        if inside is not None:
            stated = [finding for finding in FINDINGS if row.get(finding) is not None]
            values = finite_numbers(row, stated)
            if values is None:
                job.report.fault("label is not a number", inside[0])
                continue
            labels[inside[0].rsplit("/", 1)[0]] = {name: int(value) for name, value in zip(stated, values, strict=True)}
    return labels


def _record(
    job: Job,
    inside: re.Match[str],
    row: dict[str, Any],
    images: list[tuple[str, str]],
    labels: dict[str, dict[str, int]],
) -> Record | None:
    folder = inside[0].rsplit("/", 1)[0]
    kept = [image for image in images if job.options.views == "all" or image[1] != "Lateral"]
    if not kept:
        job.report.skip("study without a frontal image")
        return None
    sections = {name: " ".join(row[f"section_{name}"].split()) for name in ("findings", "impression")}
    text = report_text({name: body for name, body in sections.items() if body}, job.options.target)
    if not text:
        job.report.skip(f"report without the sections asked for ({job.options.target})")
        return None
    chosen = kept[:1] if job.options.per_study == "first" else kept
    paths = [_image(job, path) for path, _ in chosen]
    if None in paths:
        return None
    record = qa_record(
        f"chexpert-{inside['patient']}-{inside['study']}",
        "\n".join([IMAGE_PLACEHOLDER] * len(paths) + [PROMPT]),
        text,
        evaluation=inside["split"] != "train",
        task="report",
        patient=inside["patient"],
        study=f"{inside['patient']}/{inside['study']}",
        views=[view for _, view in chosen],
        labels=labels.get(folder),
        label_convention="chexbert" if folder in labels else None,
    )
    return record | {"image": paths}


def _image(job: Job, inside: str) -> str | None:
    kinds = list(_IMAGES) if job.options.images == "auto" else [job.options.images]
    places = [
        job.source / folder / Path(inside).with_suffix(suffix)
        for suffix, folders in (_IMAGES[kind] for kind in kinds)
        for folder in folders
    ]
    return relative_media(job, *places)


CHEXPERT_PLUS = DATASETS.add(
    "chexpert-plus",
    Converter(
        name="chexpert-plus",
        title="CheXpert Plus (Chambon et al., 2024)",
        license="Stanford AIMI's research use agreement, accepted at download: non-commercial, no redistribution.",
        homepage="https://stanfordaimi.azurewebsites.net/datasets/5158c524-d3ab-4e02-96e9-6ee9efc110a1",
        layout=f"{TABLE}, PNG/PNG/{{train,valid}}/patient<n>/study<n>/view<k>_<view>.png (or DICOM/Uncompressed/, or "
        "CheXpert-v1.0/ with .jpg), and chexbert_labels/{report,findings,impression}_fixed.json.",
        run=run,
        options=ChexpertPlusOptions,
    ),
)
