"""MPx-Single: MedPix images with captions, modalities and planes, in RadFM's tables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medmvl.data.prepare.base import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.prepare.media import relative_media
from medmvl.errors import DataError

#: RadFM's test prompt for captions; the questions for the two other types are ours.
PROMPTS = {
    "caption": "Describe this input image.",
    "modality": "What is the modality of this image?",
    "plane": "What is the plane of this image?",
}
_SPLITS = {"train": "MedPix_single_train.csv", "test": "MedPix_single_test.csv"}


class MpxOptions(Options):
    """Settings of the MPx-Single converter."""

    tasks: str = Field("caption", description="comma-separated: caption, modality, plane")
    images: str | None = Field(None, description="folder of the images below the source, if not found by itself")


def run(job: Job) -> Rows:
    """Yield the records of both splits."""
    tasks = {task.strip() for task in job.options.tasks.split(",")}
    if tasks - set(PROMPTS):
        raise DataError(f"MPx-Single has no task {sorted(tasks - set(PROMPTS))}. Allowed: {', '.join(PROMPTS)}.")
    files = {split: _find(job.source, name) for split, name in _SPLITS.items()}
    if not any(files.values()):
        raise DataError(f"{job.source} holds neither of: {', '.join(_SPLITS.values())}. {MPX_SINGLE.layout}")
    for split, file in files.items():
        if file is None:
            job.ledger.note(f"No {_SPLITS[split]}; the split {split!r} was not converted.")
            continue
        for number, row in enumerate(job.rows(file, ["name", "type", "context"])):
            record = _record(job, row, split, number, tasks)
            if record is not None:
                yield split, record


def _find(source: Path, name: str) -> Path | None:
    return next((p for p in (source / name, source / "RadFM_data_csv" / name) if p.is_file()), None)


def _record(job: Job, row: dict[str, str], split: str, number: int, tasks: set[str]) -> Record | None:
    kind = row["type"].lower()
    identifier = f"mpx-{split}-{number}"
    if kind not in PROMPTS:
        job.ledger.fault(f"type {row['type']!r} is not caption, modality or plane", identifier)
        return None
    if kind not in tasks:
        job.ledger.leave_out(f"type {kind}")
        return None
    # RadFM drops rows with any empty cell before use.
    if not row["context"] or not row["name"]:
        job.ledger.leave_out("row with an empty cell")
        return None
    folders = [job.options.images] if job.options.images else ["images", "MedPix-Images", "MedPix-Images/images", "."]
    path = relative_media(job, *(job.source / folder / row["name"] for folder in folders))
    if path is None:
        return None
    return qa_record(
        identifier,
        PROMPTS[kind],
        " ".join(row["context"].split()),
        image=path,
        evaluation=split != "train",
        task="report" if kind == "caption" else "vqa",
        question_type=kind,
        patient=Path(row["name"]).stem,
    )


MPX_SINGLE = DATASETS.add(
    "mpx-single",
    Converter(
        name="mpx-single",
        title="MPx-Single: MedPix through RadFM (Wu et al., 2023)",
        licence="No licence statement on the image mirror; MedPix (NLM) terms apply: check before use.",
        homepage="https://huggingface.co/datasets/chaoyi-wu/RadFM_data_csv and chaoyi-wu/MedPix-Images",
        layout="MedPix_single_train.csv, MedPix_single_test.csv and the image files in images/ or MedPix-Images/.",
        run=run,
        options=MpxOptions,
    ),
)
