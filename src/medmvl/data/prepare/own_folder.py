"""One's own data: a table whose columns are named on the command line, beside the images or volumes."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

from pydantic import Field

from medmvl.data.prepare.base import DATASETS, Converter, Job, Options, Record, Rows, qa_record, yes_or_no
from medmvl.data.prepare.media import relative_media
from medmvl.errors import DataError


class FolderOptions(Options):
    """Settings of the converter for own tables: which column holds what."""

    table: str | None = Field(None, description="the table's file name, if the source holds several")
    image: str | None = Field(None, description="column of image paths, relative to the table; several with ;")
    volume: str | None = Field(None, description="column of volume paths (files or DICOM folders)")
    question: str | None = Field(None, description="column of questions")
    prompt: str | None = Field(None, description="one question for all rows instead, e.g. for reports")
    answer: str = Field("answer", description="column of answers or reports")
    id: str | None = Field(None, description="column of ids; the row number otherwise")
    patient: str | None = Field(None, description="column that names the patient, for splits and intervals")
    split: str | None = Field(None, description="column of split names; otherwise by --set test_share=")
    test_share: float = Field(0.0, ge=0, le=1, description="share of the patients (or rows) that become 'test'")
    task: str = Field("vqa", description="what the records are: vqa, report, classify, ...")
    keep: str = Field("", description="comma-separated further columns to keep in the records")


def run(job: Job) -> Rows:
    """Yield a record per row."""
    options = job.options
    table = _table(job)
    if not options.image and not options.volume:
        job.ledger.note("Neither --set image= nor --set volume= is given: the records are text only.")
    if bool(options.question) == bool(options.prompt):
        raise DataError("Give either --set question=COLUMN or --set prompt='one question for all rows'.")
    kept = [name.strip() for name in options.keep.split(",") if name.strip()]
    columns = [
        options.image,
        options.volume,
        options.question,
        options.answer,
        options.id,
        options.patient,
        options.split,
    ]
    needed = [column for column in columns if column] + kept
    for number, row in enumerate(job.rows(table, needed), start=2):
        record = _record(job, table, row, number, kept)
        if record is not None:
            yield record.pop("_split"), record


def _table(job: Job) -> Path:
    """Return the table to read: the file named, or the only one there."""
    if job.file is not None:
        return job.file
    if job.options.table:
        return job.source / job.options.table
    found = [p for pattern in ("*.csv", "*.csv.gz", "*.xlsx", "*.parquet") for p in sorted(job.source.glob(pattern))]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise DataError(f"{job.source} must hold one table (it holds: {names}). Name it with --set table=NAME.")
    return found[0]


def _record(job: Job, table: Path, row: dict[str, Any], number: int, kept: list[str]) -> Record | None:
    options = job.options
    identifier = _text(row, options.id) or f"{table.stem}-{number}"
    answer = _text(row, options.answer)
    question = options.prompt or _text(row, options.question)
    if not question or not answer:
        job.ledger.fault("empty question or answer", f"row {number}")
        return None
    patient = _pseudonym(_text(row, options.patient))
    split = _text(row, options.split) or _draw_split(patient or identifier, options.test_share)
    paths: dict[str, list[str]] = {}
    for key, column in (("image", options.image), ("image3d", options.volume)):
        for name in filter(None, (part.strip() for part in _text(row, column).split(";"))):
            path = relative_media(job, table.parent / name, kind=key)
            if path is None:
                return None
            paths.setdefault(key, []).append(path)
    marks = "<image>\n" * len(paths.get("image", [])) + "<image3d>\n" * len(paths.get("image3d", []))
    extra = {name: row[name] for name in kept if row[name] not in (None, "")}
    record = qa_record(
        identifier,
        marks + question,
        answer,
        evaluation=split != "train",
        task=options.task,
        patient=patient,
        answer_type=("CLOSED" if yes_or_no(answer) else "OPEN") if options.task == "vqa" else None,
    )
    return record | paths | extra | {"_split": split}


def _text(row: dict[str, Any], column: str | None) -> str:
    value = row.get(column) if column else None
    return "" if value is None else str(value).strip()


def _pseudonym(name: str) -> str | None:
    """Return a digest that stands for a patient: records and predictions must not carry names or numbers of people.

    It keeps rows of one person together; it is no anonymisation, as someone with a list of all numbers could match them.
    """
    return f"p{hashlib.blake2b(name.encode(), digest_size=6).hexdigest()}" if name else None


def _draw_split(key: str, test_share: float) -> str:
    """Return "test" for a share of the patients, by a hash of their name: the same at every run."""
    return "test" if zlib.crc32(key.encode()) % 10_000 < test_share * 10_000 else "train"


FOLDER = DATASETS.add(
    "folder",
    Converter(
        name="folder",
        title="Your own data: a table and a folder of images or volumes",
        licence="Yours; patient data stay where they are, nothing is uploaded.",
        homepage="docs/datasets.md",
        layout="one .csv, .xlsx or .parquet table with a column of paths relative to it.",
        run=run,
        options=FolderOptions,
    ),
)
