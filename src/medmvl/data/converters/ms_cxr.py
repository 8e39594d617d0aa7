"""MS-CXR: phrases of MIMIC-CXR's reports with boxes in the radiographs, for phrase grounding.

Sources of the layout: MS_CXR_Local_Alignment_v1.1.0.csv (and v1.0.0) with category_name, label_text, path, x, y, w, h (pixels
of the image as published), image_width, image_height, dicom_id, and from 1.1.0 on `split`, as RadHarmony reads them
(harmonizer/ms_cxr/ms_cxr.py). A row is a box; the rows of one phrase of an image are one item here.
The images are those of MIMIC-CXR-JPG (or the DICOM files of MIMIC-CXR) at the path in the table.
Not verified: the spelling of the validation split; "val", "valid", "validate" and "validation" are taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from medmvl.data.converters.checked import finite_numbers
from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Rows
from medmvl.data.converters.grounding import TASKS, Box, grounding_records, is_inside, parse_tasks
from medmvl.data.converters.media import image_size, relative_media
from medmvl.errors import DataError

_COLUMNS = ["category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height", "dicom_id"]
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validate", "validation"), "validation")
#: where `wget -r` of PhysioNet puts its projects, below the folder that the user names
_TREES = ("", "files/", "physionet.org/files/")
_ROOTS = ("", *(f"{tree}{name}" for tree in _TREES for name in ("mimic-cxr-jpg", "mimic-cxr")))
_VERSIONS = ("", "2.0.0", "2.1.0")


class MsCxrOptions(Options):
    """Settings of the MS-CXR converter."""

    tasks: str = Field("refer,identify", description="comma-separated: refer, identify")


@dataclass
class Phrase:
    """A phrase about one image: the first of its rows, the size of the image as published, and its boxes."""

    row: dict[str, Any]
    size: tuple[int, int]
    boxes: list[Box] = field(default_factory=list)


def run(job: Job) -> Rows:
    """Yield the records of every phrase, in the order of the table."""
    tasks = parse_tasks(job.options.tasks, TASKS, "MS-CXR")
    name = "MS_CXR_Local_Alignment_v*.csv"
    tables = job.find(name) + [path for tree in _TREES for path in sorted(job.source.glob(f"{tree}ms-cxr/*/{name}"))]
    table = max(tables, key=lambda path: path.name, default=None)
    if table is None:
        raise DataError(f"{job.source} holds no MS_CXR_Local_Alignment_v*.csv. Expected: {MS_CXR.layout}")
    phrases: dict[tuple[str, str, str], Phrase] = {}
    for row in job.rows(table, _COLUMNS):
        key = (row["dicom_id"], row["category_name"], row["label_text"])
        numbers = finite_numbers(row, [*"xywh", "image_width", "image_height"])
        if numbers is None:
            job.report.fault("box or image size is not a number", row["dicom_id"])
            continue
        x, y, w, h, width, height = numbers
        phrases.setdefault(key, Phrase(row, (int(width), int(height)))).boxes.append((x, y, w, h))
    if phrases and not any("split" in phrase.row for phrase in phrases.values()):
        job.report.note(f"{table.name} has no split, as versions before 1.1.0: everything is 'test'.")
    counts: dict[str, int] = {}
    for phrase in phrases.values():
        dicom = phrase.row["dicom_id"]
        counts[dicom] = counts.get(dicom, -1) + 1
        yield from _phrase(job, phrase, f"{dicom}-{counts[dicom]}", tasks)


def _phrase(job: Job, phrase: Phrase, key: str, tasks: set[str]) -> Rows:
    row = phrase.row
    split = SPLITS.get(row["split"].lower()) if "split" in row else "test"
    text = " ".join(row["label_text"].split())
    parts = Path(row["path"]).parts
    if split is None or not text or len(parts) < 3:
        job.report.fault("row without a phrase, a known split or a path of MIMIC-CXR", key)
        return
    if not all(is_inside(box, phrase.size) for box in phrase.boxes):
        job.report.fault("box is empty or outside the image", key)
        return
    inside = (Path(row["path"]), Path(row["path"]).with_suffix(".dcm"))
    path = relative_media(
        job, *(job.source / root / version / file for root in _ROOTS for version in _VERSIONS for file in inside)
    )
    if path is None:
        return
    boxes, size = _scaled(job, path, phrase.boxes, phrase.size)
    facts = {
        "image": path,
        "evaluation": split != "train",
        "category": row["category_name"],
        "patient": parts[-3],
        "study": parts[-2],
    }
    yield from ((split, record) for record in grounding_records("mscxr", key, text, boxes, size, tasks, **facts))


def _scaled(job: Job, path: str, boxes: list[Box], size: tuple[int, int]) -> tuple[list[Box], tuple[int, int]]:
    """Return the boxes in the pixels of the image that is there, and its size: resized copies of MIMIC are usual."""
    actual = image_size(job.source / path)
    if actual is None or actual == size:
        return boxes, size
    job.report.note("Some images have another size than in the table: their boxes were scaled with them.")
    x, y = actual[0] / size[0], actual[1] / size[1]
    return [(box[0] * x, box[1] * y, box[2] * x, box[3] * y) for box in boxes], actual


MS_CXR = DATASETS.add(
    "ms-cxr",
    Converter(
        name="ms-cxr",
        title="MS-CXR (Boecking et al., 2022)",
        license="PhysioNet Credentialed Health Data Use Agreement, as for MIMIC-CXR: no redistribution, no third-party APIs.",
        homepage="https://physionet.org/content/ms-cxr/ (images: https://physionet.org/content/mimic-cxr-jpg/)",
        layout="MS_CXR_Local_Alignment_v1.1.0.csv and files/p10/p<subject>/s<study>/<dicom>.jpg (or .dcm) of MIMIC-CXR.",
        run=run,
        options=MsCxrOptions,
    ),
)
