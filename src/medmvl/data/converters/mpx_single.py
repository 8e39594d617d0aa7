"""MPx-Single: MedPix images with captions, modalities and planes, in RadFM's tables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.converters.media import relative_media
from medmvl.errors import DataError

#: RadFM's test prompt for captions; the questions for the two other types are ours.
PROMPTS = {
    "caption": "Describe this input image.",
    "modality": "What is the modality of this image?",
    "plane": "What is the plane of this image?",
}
#: Texts that pandas.read_csv reads as missing by default.
_MISSING = frozenset(
    [
        "",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    ]
)
_SPLITS = {"train": "MedPix_single_train.csv", "test": "MedPix_single_test.csv"}


class MpxOptions(Options):
    """Settings of the MPx-Single converter."""

    tasks: str = Field("caption", description="comma-separated: caption, modality, plane")
    images: str | None = Field(
        None, description="folder of the images below the source, if it is not found automatically"
    )


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
            job.report.note(f"No {_SPLITS[split]}; the split {split!r} was not converted.")
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
        job.report.fault(f"type {row['type']!r} is not caption, modality or plane", identifier)
        return None
    if kind not in tasks:
        job.report.skip(f"type {kind}")
        return None
    # RadFM and Uni-Med drop rows with any missing cell before use; pandas also counts "None" and "N/A" as missing.
    if any(row[column] in _MISSING for column in ("name", "type", "context")):
        job.report.skip("row with an empty cell (also None, N/A and what else pandas reads as missing)")
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
        license="No license statement on the image mirror; MedPix (NLM) terms apply: check before use.",
        homepage="https://huggingface.co/datasets/chaoyi-wu/RadFM_data_csv and chaoyi-wu/MedPix-Images",
        layout="MedPix_single_train.csv, MedPix_single_test.csv and the image files in images/ or MedPix-Images/.",
        run=run,
        options=MpxOptions,
    ),
)
