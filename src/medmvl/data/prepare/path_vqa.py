"""PathVQA: pathology questions, as the official pickles or as the hub's parquet mirror."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medmvl.data.prepare.base import DATASETS, Converter, Job, Record, Rows, qa_record, yes_or_no
from medmvl.data.prepare.media import export_bytes, relative_media
from medmvl.data.prepare.safe_pickle import load_plain_pickle
from medmvl.data.prepare.tables import iter_parquet
from medmvl.errors import DataError

#: our split -> names in the official files and in the mirror
SPLITS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


def run(job: Job) -> Rows:
    """Yield the records of whichever layout is there."""
    base = next((b for b in (job.source, job.source / "pvqa") if (b / "qas").is_dir()), None)
    if base is not None:
        yield from _official(job, base)
    elif job.find("*.parquet"):
        job.ledger.note("The hub mirror names no answer type: answers that are exactly yes or no count as CLOSED.")
        yield from _mirror(job)
    else:
        raise DataError(f"{job.source} holds neither qas/ nor parquet files. {PATH_VQA.layout}")


def _official(job: Job, base: Path) -> Rows:
    for split, (name, *_) in SPLITS.items():
        typed, plain = base / "qas" / f"{name}_vqa.pkl", base / "qas" / name / f"{name}_qa.pkl"
        if typed.is_file():
            rows = load_plain_pickle(typed)
        elif plain.is_file():
            job.ledger.note(f"{plain.name} names no answer type: answers that are exactly yes or no count as CLOSED.")
            rows = load_plain_pickle(plain)
        else:
            job.ledger.note(f"No question file of the split {split!r}; it was not converted.")
            continue
        yield from ((split, record) for record in _questions(job, base, name, rows, split != "train"))


def _questions(job: Job, base: Path, name: str, rows: Any, evaluation: bool) -> Iterator[Record]:
    for number, row in enumerate(rows):
        image = str(row.get("img_id", row.get("image", "")))
        identifier = f"pathvqa-{name}-{row.get('question_id', number)}"
        question = str(row.get("sent", row.get("question", ""))).strip()
        answer = _answer(row)
        if not question or not answer:
            job.ledger.fault("empty question or answer", identifier)
            continue
        path = relative_media(job, base / "images" / name / f"{image}.jpg", base / "images" / f"{image}.jpg")
        if path is None:
            continue
        kind = row.get("answer_type")
        closed = kind == "yes/no" if kind else yes_or_no(answer)
        yield qa_record(
            identifier,
            question,
            answer,
            image=path,
            evaluation=evaluation,
            task="vqa",
            patient=image,
            answer_type="CLOSED" if closed else "OPEN",
            question_type=row.get("question_type"),
        )


def _answer(row: dict[str, Any]) -> str:
    """Return the answer: the first key of `label` in the typed files, `answer` in the plain ones."""
    label = row.get("label")
    return str(next(iter(label), "") if isinstance(label, dict) else row.get("answer", "")).strip()


def _mirror(job: Job) -> Rows:
    for split, names in SPLITS.items():
        files = [p for n in names for p in job.find(f"{n}-*.parquet")]
        files = files or [p for n in names for p in job.find(f"{n}.parquet")]
        number = 0
        for file in files:
            for row in iter_parquet(file, ["image", "question", "answer"]):
                number += 1
                record = _mirror_record(job, row, split, number)
                if record is not None:
                    yield split, record


def _mirror_record(job: Job, row: dict[str, Any], split: str, number: int) -> Record | None:
    identifier = f"pathvqa-{split}-{number}"
    question, answer = str(row["question"] or "").strip(), str(row["answer"] or "").strip()
    if not question or not answer:
        job.ledger.fault("empty question or answer", identifier)
        return None
    data = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
    path = export_bytes(job, data or b"", f"images/{split}")
    if path is None:
        job.ledger.fault("image is not readable", identifier)
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


PATH_VQA = DATASETS.add(
    "path-vqa",
    Converter(
        name="path-vqa",
        title="PathVQA (He et al., 2020)",
        licence="Questions MIT; images belong to their publishers (PEIR, textbooks): research use.",
        homepage="https://github.com/UCSD-AI4H/PathVQA (mirror: flaviagiammarino/path-vqa on the Hugging Face hub)",
        layout="pvqa/qas/{train,val,test}_vqa.pkl with pvqa/images/{train,val,test}/*.jpg, or the mirror's parquet files.",
        run=run,
    ),
)
