"""MIMIC-CXR: chest radiographs (JPG or DICOM) with free-text reports, one record per study; or R2Gen's annotation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.converters.iu_xray import IU_XRAY
from medmvl.data.converters.media import relative_media
from medmvl.data.converters.mimic_reports import Reports, places
from medmvl.data.converters.reports import report_text
from medmvl.data.sample import IMAGE_PLACEHOLDER
from medmvl.data.tables import iter_json_under
from medmvl.errors import DataError

PROMPT = "Describe the given chest x-ray image in detail."  # Uni-Med's test prompt
FRONTAL = ("AP", "PA")
_OPEN_I = re.compile(r"CXR\d+_IM-")
SPLITS = {"train": "train", "validate": "validation", "val": "validation", "test": "test"}


class MimicOptions(Options):
    """Settings of the MIMIC-CXR converter."""

    source_kind: Literal["auto", "study", "r2gen"] = Field(
        "auto", description="study records, or R2Gen's annotation.json"
    )
    images: Literal["auto", "jpg", "dicom"] = Field("auto", description="which files to name in the records")
    views: Literal["frontal", "all"] = Field("frontal", description="frontal keeps AP and PA only")
    per_study: Literal["first", "all"] = Field("first", description="one image of a study, or all of its views")
    target: Literal["both", "findings", "impression"] = Field("both", description="which sections to write")
    reports: str | None = Field(None, description="where the reports are, if not in the source: a folder, zip or csv")
    max_words: int | None = Field(None, ge=1, description="truncate reports to this many words (Uni-Med: 50)")


@dataclass
class Study:
    """One study: its split, patient, and images (dicom id, view)."""

    subject: str
    split: str
    images: list[tuple[str, str]] = field(default_factory=list)


def run(job: Job) -> Rows:
    """Yield one record per study (or per annotation item)."""
    if job.options.max_words is not None:
        job.report.note(
            f"Reports are cut after {job.options.max_words} words; scores are not comparable with whole ones."
        )
    annotation = next(iter(job.find("annotation.json")), None)
    kind = job.options.source_kind
    tables = _table(job, "-split") is not None
    if kind == "r2gen" or (kind == "auto" and annotation is not None and not tables):
        if annotation is None:
            raise DataError(f"{job.source} holds no annotation.json.")
        if _OPEN_I.match(_first_id(annotation)):
            yield from _iu_xray(job)
        else:
            yield from _annotation(job, annotation)
    else:
        yield from _studies(job)


def _table(job: Job, ending: str) -> Path | None:
    """Return the csv (or csv.gz) whose name ends so; 2.1.0 keeps the 2.0.0 file names."""
    names = (f"*{ending}.csv.gz", f"*{ending}.csv")
    return next((file for name in names for place in places(job) for file in sorted(place.glob(name))), None)


def _studies(job: Job) -> Rows:
    split_table, metadata = _table(job, "-split"), _table(job, "-metadata")
    if split_table is None:
        raise DataError(f"{job.source} holds no mimic-cxr-2.0.0-split.csv.gz. {MIMIC_CXR.layout}")
    views = _views(job, metadata)
    if not views:
        job.report.note("No metadata table: the views are unknown, and all images are kept.")
    studies: dict[str, Study] = {}
    for row in job.rows(split_table, ["dicom_id", "study_id", "subject_id", "split"]):
        study = studies.setdefault(row["study_id"], Study(row["subject_id"], SPLITS.get(row["split"], row["split"])))
        study.images.append((row["dicom_id"], views.get(row["dicom_id"], "")))
    labels = _labels(job)
    reports = Reports(job)
    for identifier, study in studies.items():
        record = _study_record(job, identifier, study, reports, bool(views), labels.get(identifier))
        if record is not None:
            yield study.split, record


def _views(job: Job, metadata: Path | None) -> dict[str, str]:
    if metadata is None:
        return {}
    return {row["dicom_id"]: row["ViewPosition"] for row in job.rows(metadata, ["dicom_id", "ViewPosition"])}


def _labels(job: Job) -> dict[str, dict[str, int]]:
    """Return study -> CheXpert labels 1, 0, -1 (blank ones left out), if the table is there."""
    table = _table(job, "-chexpert")
    if table is None:
        return {}
    labels = {}
    for row in job.rows(table, ["study_id"]):
        values = {k: int(float(v)) for k, v in row.items() if k not in ("subject_id", "study_id") and v}
        labels[row["study_id"]] = values
    return labels


def _study_record(
    job: Job, identifier: str, study: Study, reports: Reports, views_known: bool, labels: dict[str, int] | None
) -> Record | None:
    images = study.images
    if job.options.views == "frontal" and views_known:
        images = [image for image in images if image[1] in FRONTAL]
        if not images:
            job.report.skip("study without a frontal image")
            return None
    sections = reports.sections(study.subject, identifier)
    if sections is None:
        return None
    text = _cut(report_text(sections, job.options.target), job.options.max_words)
    if not text:
        job.report.skip(f"report without the sections asked for ({job.options.target})")
        return None
    images = sorted(images, key=lambda image: image[1] not in FRONTAL)
    chosen = images[:1] if job.options.per_study == "first" else images
    paths = [_image(job, study.subject, identifier, dicom) for dicom, _ in chosen]
    if None in paths:
        return None
    evaluation = study.split != "train"
    record = qa_record(
        f"mimic-s{identifier}",
        "\n".join([IMAGE_PLACEHOLDER] * len(paths) + [PROMPT]),
        text,
        evaluation=evaluation,
        task="report",
        patient=f"p{study.subject}",
        study=f"s{identifier}",
        views=[view for _, view in chosen] if views_known else None,
        labels=labels,
        label_convention="chexbert" if labels else None,
    )
    return record | {"image": paths}


def _image(job: Job, subject: str, study: str, dicom: str) -> str | None:
    inside = Path(f"p{subject[:2]}") / f"p{subject}" / f"s{study}"
    suffixes = {"jpg": [".jpg"], "dicom": [".dcm"], "auto": [".jpg", ".dcm"]}[job.options.images]
    bases = [base for place in places(job) for base in (place / "files", place)]
    return relative_media(job, *(base / inside / f"{dicom}{s}" for base in bases for s in suffixes))


def _cut(text: str, words: int | None) -> str:
    return text if words is None else " ".join(text.split(" ")[:words])


def _first_id(annotation: Path) -> str:
    """Return the id of the first item of R2Gen's annotation, "" if it has none."""
    for key in ("train", "val", "test"):
        for item in iter_json_under(annotation, key):
            return str(item.get("id", "")) if isinstance(item, dict) else ""
    return ""


def _iu_xray(job: Job) -> Rows:
    """Yield the records of IU X-Ray, which R2Gen publishes in the same layout as MIMIC-CXR.

    Raises:
        DataError: if a setting of MIMIC-CXR is given, which IU X-Ray does not have.
    """
    given = job.options.model_dump(exclude_defaults=True, exclude={"source_kind"})
    if given:
        raise DataError(
            f"{job.source} holds IU X-Ray (ids CXR<n>_IM-<m>), not MIMIC-CXR, and has no {', '.join(given)}. Convert it with: "
            "medmvl data convert iu-xray"
        )
    options = IU_XRAY.parse_options({})
    job.report.read_as = (IU_XRAY.name, options)
    job.report.note(
        "The source holds IU X-Ray (ids CXR<n>_IM-<m>), not MIMIC-CXR: it was converted as by `medmvl data convert iu-xray`."
    )
    yield from IU_XRAY.run(replace(job, options=options))


def _annotation(job: Job, file: Path) -> Rows:
    """Yield R2Gen's items: findings as they are there, one record per item."""
    for key, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        for item in iter_json_under(file, key):
            record = _annotation_record(job, item, split)
            if record is not None:
                yield split, record


def _annotation_record(job: Job, item: dict[str, Any], split: str) -> Record | None:
    if _OPEN_I.match(str(item.get("id", ""))):
        raise DataError(f"{job.source}: annotation.json mixes items of MIMIC-CXR and of IU X-Ray (id {item['id']}).")
    paths = item.get("image_path") or []
    first = paths if isinstance(paths, str) else next(iter(paths), "")
    text = _cut(" ".join(str(item.get("report") or "").split()), job.options.max_words)
    identifier = f"mimic-{item.get('id', first)}"
    if not text or not first:
        job.report.fault("empty report or no image", identifier)
        return None
    bases = (job.source / "files", job.source / "images", job.source, job.source / "mimic-cxr-jpg" / "files")
    path = relative_media(job, *(base / first for base in bases))
    if path is None:
        return None
    return qa_record(
        identifier,
        PROMPT,
        text,
        image=path,
        evaluation=split != "train",
        task="report",
        patient=f"p{item['subject_id']}" if "subject_id" in item else None,
        study=f"s{item['study_id']}" if "study_id" in item else None,
    )


MIMIC_CXR = DATASETS.add(
    "mimic-cxr",
    Converter(
        name="mimic-cxr",
        title="MIMIC-CXR / MIMIC-CXR-JPG (Johnson et al., 2019)",
        license="PhysioNet Credentialed Health Data Use Agreement: no redistribution, no third-party APIs.",
        homepage="https://physionet.org/content/mimic-cxr-jpg/ (reports: https://physionet.org/content/mimic-cxr/)",
        layout="files/p10/p<subject>/s<study>/<dicom>.jpg (or .dcm), the reports as s<study>.txt or mimic-cxr-reports.zip "
        "or mimic_cxr_sectioned.csv, and mimic-cxr-2.0.0-{split,metadata,chexpert}.csv.gz.",
        run=run,
        options=MimicOptions,
    ),
)
