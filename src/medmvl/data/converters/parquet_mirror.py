"""Hub mirrors of question sets: parquet files with the columns image, question and answer, one set of files per split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medmvl.data.converters.converter import Job, Record, qa_record, yes_or_no
from medmvl.data.converters.media import export_bytes
from medmvl.data.tables import iter_parquet

_COLUMNS = ["image", "question", "answer"]


def mirror_records(job: Job, split: str, names: Sequence[str], prefix: str) -> Iterator[Record]:
    """Yield the records of one split; the pictures are written below `out/images/<split>`.

    The mirrors name neither answer types nor patients: answers that are exactly yes or no count as CLOSED, and an image
    stands for a patient.

    Args:
        job: the running conversion.
        split: our name of the split.
        names: how its files may begin, in the hub's spelling ("val", "validation").
        prefix: beginning of the record ids.
    """
    files = [path for name in names for path in (job.find(f"{name}-*.parquet") or job.find(f"{name}.parquet"))]
    number = 0
    for file in files:
        for row in iter_parquet(file, _COLUMNS):
            number += 1
            record = _record(job, row, split, f"{prefix}-{split}-{number}")
            if record is not None:
                yield record


def _record(job: Job, row: dict[str, Any], split: str, identifier: str) -> Record | None:
    question, answer = (str(row[key] or "").strip() for key in ("question", "answer"))
    if not question or not answer:
        job.report.fault("empty question or answer", identifier)
        return None
    data = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
    path = export_bytes(job, data or b"", f"images/{split}")
    if path is None:
        job.report.fault("image is not readable", identifier)
        return None
    return qa_record(
        identifier,
        question,
        answer,
        image=path,
        evaluation=split != "train",
        task="vqa",
        patient=Path(path).stem,
        answer_type="CLOSED" if yes_or_no(answer) else "OPEN",
    )
