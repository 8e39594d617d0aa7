"""VQA-RAD: clinicians' questions about 315 radiology images of MedPix (head, chest, abdomen).

Sources of the layout:
- The release (osf.io/89kps): one JSON array and a folder of images. Its keys, and that `phrase_type` "test_freeform" and
  "test_para" mark the 451 test questions, are in the readers RadHarmony (harmonizer/vqa_rad.py) and VQAMix.
- The repack of MEVF (`trainset.json`, `testset.json`, `images/`), which other methods train on: same keys.
- The hub mirror flaviagiammarino/vqa-rad: its card says that 4 repeated training questions were removed (1,793 and 451).
The official split is by question, not by image: most images of the test questions are in training, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medmvl.data.converters.checked import iter_objects
from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.converters.media import relative_media
from medmvl.data.converters.parquet_mirror import mirror_records
from medmvl.data.tables import iter_json_array
from medmvl.errors import DataError

RELEASE = "VQA_RAD Dataset Public.json"
REPACK = {"trainset.json": "train", "testset.json": "test"}
PHRASE_SPLITS = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}
ANSWER_TYPES = ("OPEN", "CLOSED")
_FOLDERS = ("VQA_RAD Image Folder", "images", "image", "")


class VqaRadOptions(Options):
    """Settings of the VQA-RAD converter."""

    train: Literal["official", "unseen"] = Field(
        "official", description="all training questions, or only those about images without a test question"
    )


def run(job: Job) -> Rows:
    """Yield the test questions, then the training questions, of whichever layout is there."""
    seen: set[str] = set()
    shared: set[str] = set()
    for split, record in _all(job):
        patient = record["patient"]
        if split == "test":
            seen.add(patient)
        elif patient in seen:
            shared.add(patient)
            if job.options.train == "unseen":
                job.report.skip("training question about an image of the test split")
                continue
        yield split, record
    if shared and job.options.train == "official":
        job.report.note(
            f"The official split is by question: {len(shared)} of {len(seen)} test images are also in training. "
            "--set train=unseen leaves those training questions out."
        )


def _all(job: Job) -> Rows:
    """Yield (split, record) with the test split first, so that its images are known when training begins."""
    release = next(iter(job.find(RELEASE)), None)
    repack = {split: next(iter(job.find(name)), None) for name, split in REPACK.items()}
    if release is not None:
        rows = [(row, _split(row)) for row in iter_objects(job, iter_json_array(release), release.name)]
        for split in ("test", "train"):
            yield from _questions(job, release, split, [row for row, own in rows if own == split])
        for row in (row for row, own in rows if own is None):
            job.report.fault("phrase_type names no split", _identifier(row))
    elif any(repack.values()):
        for split in ("test", "train"):
            file = repack[split]
            if file is None:
                job.report.note(f"No file of the split {split!r}; it was not converted.")
            else:
                yield from _questions(job, file, split, iter_objects(job, iter_json_array(file), file.name))
    elif job.find("*.parquet"):
        job.report.note("The hub mirror names no answer type: answers that are exactly yes or no count as CLOSED.")
        for split in ("test", "train"):
            yield from ((split, record) for record in mirror_records(job, split, (split,), "vqarad"))
    else:
        raise DataError(f"{job.source} holds neither {RELEASE!r}, trainset.json nor parquet files. {VQA_RAD.layout}")


def _split(row: dict[str, Any]) -> str | None:
    return PHRASE_SPLITS.get(str(row.get("phrase_type", "")).strip().lower())


def _identifier(row: dict[str, Any]) -> str:
    return f"vqarad-{row.get('qid', '?')}"


def _questions(job: Job, file: Path, split: str, rows: Iterable[dict[str, Any]]) -> Rows:
    for row in rows:
        record = _record(job, file.parent, row, split)
        if record is not None:
            yield split, record


def _record(job: Job, root: Path, row: dict[str, Any], split: str) -> Record | None:
    identifier = _identifier(row)
    question, answer = (" ".join(str(row.get(key, "")).split()) for key in ("question", "answer"))
    image = str(row.get("image_name") or "")
    if not question or not answer or not image:
        job.report.fault("empty question, answer or image name", identifier)
        return None
    answer_type = str(row.get("answer_type", "")).strip().upper()  # some rows say "CLOSED "
    if answer_type not in ANSWER_TYPES:
        job.report.fault("answer_type is neither OPEN nor CLOSED", identifier)
        return None
    path = relative_media(job, *(root / folder / image for folder in _FOLDERS))
    if path is None:
        return None
    return qa_record(
        identifier,
        question,
        answer,
        image=path,
        evaluation=split != "train",
        task="vqa",
        patient=Path(image).stem,
        answer_type=answer_type,
        question_type=_text(row, "question_type"),
        phrase_type=_text(row, "phrase_type"),
        organ=_text(row, "image_organ"),
    )


def _text(row: dict[str, Any], key: str) -> str | None:
    return str(row.get(key) or "").strip() or None


VQA_RAD = DATASETS.add(
    "vqa-rad",
    Converter(
        name="vqa-rad",
        title="VQA-RAD (Lau et al., 2018)",
        license="CC0 1.0.",
        homepage="https://osf.io/89kps/ (mirror: flaviagiammarino/vqa-rad on the Hugging Face hub)",
        layout=f"{RELEASE!r} with 'VQA_RAD Image Folder/'; or trainset.json and testset.json with images/; or the mirror's "
        "parquet files.",
        run=run,
        options=VqaRadOptions,
    ),
)
