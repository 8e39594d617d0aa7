"""IU X-Ray (Open-i): chest radiographs of 3,955 examinations with reports; one record per examination, with all its views.

Sources of the three layouts:
- NLM's own release (openi.nlm.nih.gov): ecgen-radiology/N.xml and the PNG or DICOM images. The elements `parentImage`,
  `AbstractText Label=...` and `MeSH/major` and the file names are in RadHarmony, harmonizer/openi_cxr.py.
- The Kaggle copy (raddar/chest-xrays-indiana-university): indiana_reports.csv, indiana_projections.csv and
  images/images_normalized/; the columns are in several readers.
- R2Gen's annotation.json (train, val and test; findings only), with which report generation is usually scored.
Only R2Gen's layout has a split. An examination stands for a patient: no layout says which ones share a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medmvl.data.converters.checked import iter_objects
from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.converters.iu_xray_reports import Examination, iter_kaggle, iter_xml
from medmvl.data.converters.media import relative_media
from medmvl.data.converters.reports import report_text
from medmvl.data.converters.splits import draw_split
from medmvl.data.sample import IMAGE_PLACEHOLDER
from medmvl.data.tables import iter_json_under
from medmvl.errors import DataError

PROMPT = "Describe the given chest x-ray image in detail."  # Uni-Med's test prompt for radiographs
_R2GEN_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_NUMBER = re.compile(r"CXR(\d+)")


class IuXrayOptions(Options):
    """Settings of the IU X-Ray converter."""

    source_kind: Literal["auto", "r2gen", "xml", "kaggle"] = Field("auto", description="which layout to read")
    views: Literal["all", "frontal"] = Field(
        "all", description="all images of an examination, or frontal ones (kaggle)"
    )
    target: Literal["auto", "both", "findings", "impression"] = Field(
        "auto", description="which sections to write; auto: both, and findings in R2Gen's layout"
    )
    test_share: float = Field(0.2, ge=0, le=1, description="share of the examinations drawn for 'test' (xml, kaggle)")
    validation_share: float = Field(0.1, ge=0, le=1, description="share drawn for 'validation' (xml, kaggle)")


def run(job: Job) -> Rows:
    """Yield one record per examination of whichever layout is there."""
    kinds = {"r2gen": _annotation, "xml": _xml_folder, "kaggle": _tables}
    wanted = [job.options.source_kind] if job.options.source_kind != "auto" else list(kinds)
    kind, place = next(((kind, place) for kind in wanted if (place := kinds[kind](job)) is not None), (None, None))
    if place is None:
        raise DataError(f"{job.source} holds no layout of IU X-Ray ({', '.join(wanted)}). Expected: {IU_XRAY.layout}")
    if job.options.views == "frontal" and kind != "kaggle":
        raise DataError("Only the Kaggle tables say which view is frontal. Use --set views=all for this layout.")
    job.report.note('De-identified words are "XXXX" in the reports, as published.')
    if kind == "r2gen":
        yield from _from_annotation(job, place)
    else:
        yield from _from_release(job, kind, place)


def _annotation(job: Job) -> Path | None:
    return next(iter(job.find("annotation.json")), None)


def _xml_folder(job: Job) -> Path | None:
    return next((path for path in job.find("ecgen-radiology") if path.is_dir()), None)


def _tables(job: Job) -> Path | None:
    reports = next(iter(job.find("indiana_reports.csv")), None)
    return reports if reports and reports.with_name("indiana_projections.csv").is_file() else None


def _from_annotation(job: Job, file: Path) -> Rows:
    if job.options.target not in ("auto", "findings"):
        raise DataError(f"R2Gen's annotation.json holds findings only, not {job.options.target!r}. Use the XML files.")
    for key, split in _R2GEN_SPLITS.items():
        for item in iter_objects(job, iter_json_under(file, key), key):
            record = _annotation_record(job, file.parent, item, split)
            if record is not None:
                yield split, record


def _annotation_record(job: Job, root: Path, item: dict[str, Any], split: str) -> Record | None:
    identifier = str(item.get("id", ""))
    number = _NUMBER.match(identifier)
    if number is None:
        job.report.fault("id does not begin with CXR and a number", identifier or "?")
        return None
    names = item.get("image_path") or []
    names = [names] if isinstance(names, str) else names
    text = " ".join(str(item.get("report") or "").split())
    paths = [relative_media(job, *(root / folder / name for folder in ("images", ""))) for name in names]
    return _record(job, identifier, number[1], text, paths, split)


def _from_release(job: Job, kind: str | None, place: Path) -> Rows:
    job.report.note(
        "There is no official split: examinations are drawn by their number. This is not R2Gen's split, with which "
        "published numbers are made."
    )
    examinations = (
        iter_xml(job, place) if kind == "xml" else iter_kaggle(job, place, place.with_name("indiana_projections.csv"))
    )
    for examination in examinations:
        split = draw_split(examination.number, job.options.test_share, job.options.validation_share)
        yield from ((split, record) for record in _examination(job, examination, split))


def _examination(job: Job, examination: Examination, split: str) -> Iterator[Record]:
    """Yield the record of an examination, if it has an image and the section asked for."""
    views = examination.views
    chosen = list(range(len(examination.images)))
    if job.options.views == "frontal" and views is not None:
        chosen = [number for number in chosen if views[number] == "Frontal"]
    if not chosen:
        job.report.skip("examination without an image (of the view asked for)")
        return
    target = "both" if job.options.target == "auto" else job.options.target
    text = report_text(examination.sections, target)
    if not text:
        job.report.skip(f"report without the sections asked for ({target})")
        return
    paths = [relative_media(job, *examination.images[number]) for number in chosen]
    facts = {
        "views": [views[number] for number in chosen] if views is not None else None,
        "indication": examination.sections.get("indication"),
        "mesh": examination.mesh or None,
    }
    record = _record(job, f"CXR{examination.number}", examination.number, text, paths, split, **facts)
    if record is not None:
        yield record


def _record(
    job: Job, identifier: str, number: str, text: str, paths: list[str | None], split: str, **facts: Any
) -> Record | None:
    if not text or not paths:
        job.report.fault("empty report or no image", identifier)
        return None
    if None in paths:
        return None
    record = qa_record(
        f"iu-{identifier}",
        "\n".join([IMAGE_PLACEHOLDER] * len(paths) + [PROMPT]),
        text,
        evaluation=split != "train",
        task="report",
        patient=f"CXR{number}",
        **facts,
    )
    return record | {"image": paths}


IU_XRAY = DATASETS.add(
    "iu-xray",
    Converter(
        name="iu-xray",
        title="IU X-Ray / Open-i (Demner-Fushman et al., 2016)",
        license="CC BY-NC-ND 4.0.",
        homepage="https://openi.nlm.nih.gov/faq (NLMCXR_png.tgz, NLMCXR_reports.tgz); R2Gen's annotation.json: "
        "https://github.com/zhjohnchan/R2Gen",
        layout="annotation.json and images/CXR<n>_IM-<m>/<k>.png (R2Gen); or ecgen-radiology/<n>.xml and NLMCXR_png/*.png "
        "(or NLMCXR_dcm/); or indiana_reports.csv, indiana_projections.csv and images/images_normalized/.",
        run=run,
        options=IuXrayOptions,
    ),
)
