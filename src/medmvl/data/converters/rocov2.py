"""ROCOv2: radiological figures of PubMed Central articles with captions and UMLS concepts.

Sources of the two layouts:
- Zenodo record 10821435: {train,valid,test}_captions.csv (ID, Caption), *_concepts.csv (ID, CUIs separated by ";") and the
  images, unpacked as train_images/train/ROCOv2_2023_train_000001.jpg; as several readers state them.
- The hub mirror eltorio/ROCOv2-radiology: parquet files with image, image_id, caption and cui.
Which figures are of one article is not in these files, so an image stands for a patient.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.converters.media import export_bytes, relative_media
from medmvl.data.tables import iter_parquet
from medmvl.errors import DataError

PROMPT = "Describe this radiology image."  # ours: the data set has no question
SPLITS = {"train": ("train",), "validation": ("valid", "validation"), "test": ("test",)}
_SUFFIXES = (".jpg", ".png")


class Rocov2Options(Options):
    """Settings of the ROCOv2 converter."""

    prompt: str = Field(PROMPT, description="the request before every caption")


def run(job: Job) -> Rows:
    """Yield a record per image, of whichever layout is there."""
    if job.find("*_captions.csv"):
        yield from _tables(job)
    elif job.find("*.parquet"):
        yield from _mirror(job)
    else:
        raise DataError(f"{job.source} holds neither *_captions.csv nor parquet files. Expected: {ROCOV2.layout}")


def _tables(job: Job) -> Rows:
    for split, names in SPLITS.items():
        table = next((path for name in names for path in job.find(f"{name}_captions.csv")), None)
        if table is None:
            job.report.note(f"No captions of the split {split!r}; it was not converted.")
            continue
        concepts = _concepts(job, table)
        part = table.name.removesuffix("_captions.csv")
        folders = [table.parent / name for name in (f"{part}_images/{part}", f"{part}_images", f"{part}/{part}", part)]
        for row in job.rows(table, ["ID", "Caption"]):
            name = row["ID"]
            path = relative_media(job, *(folder / f"{name}{suffix}" for folder in folders for suffix in _SUFFIXES))
            if path is not None:
                yield from _record(job, split, name, row["Caption"], path, concepts.get(name))


def _concepts(job: Job, captions: Path) -> dict[str, list[str]]:
    """Return image -> UMLS concept identifiers; {} without the table."""
    table = captions.with_name(captions.name.replace("_captions", "_concepts"))
    if not table.is_file():
        job.report.note(f"No {table.name}: the records carry no concepts.")
        return {}
    rows = job.rows(table, ["ID", "CUIs"])
    return {row["ID"]: [code.strip() for code in row["CUIs"].split(";") if code.strip()] for row in rows}


def _mirror(job: Job) -> Rows:
    for split, names in SPLITS.items():
        for file in [path for name in names for path in job.find(f"{name}-*.parquet")]:
            for row in iter_parquet(file, ["image", "image_id", "caption"]):
                data = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
                path = export_bytes(job, data or b"", f"images/{split}")
                if path is None:
                    job.report.fault("image is not readable", str(row["image_id"]))
                    continue
                yield from _record(job, split, str(row["image_id"]), row["caption"], path, row.get("cui"))


def _record(job: Job, split: str, name: str, caption: str | None, path: str, concepts: list[str] | None) -> Rows:
    text = " ".join((caption or "").split())
    if not text:
        job.report.fault("caption is empty", name)
        return
    record: Record = qa_record(
        f"rocov2-{name}",
        job.options.prompt,
        text,
        image=path,
        evaluation=split != "train",
        task="caption",
        patient=name,
        concepts=concepts or None,
    )
    yield split, record


ROCOV2 = DATASETS.add(
    "rocov2",
    Converter(
        name="rocov2",
        title="ROCOv2 (Rückert et al., 2024)",
        license="CC BY-NC-SA 4.0 on the mirror's card; each image has the license of its article.",
        homepage="https://zenodo.org/records/10821435 (mirror: eltorio/ROCOv2-radiology on the Hugging Face hub)",
        layout="{train,valid,test}_captions.csv, *_concepts.csv and {train,valid,test}_images/ with the unpacked images; or the "
        "mirror's parquet files.",
        run=run,
        options=Rocov2Options,
    ),
)
