"""PathVQA: pathology questions, as the official pickles or as the hub's parquet mirror."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medmvl.data.converters.converter import DATASETS, Converter, Job, Record, Rows, qa_record, yes_or_no
from medmvl.data.converters.media import relative_media
from medmvl.data.converters.parquet_mirror import mirror_records
from medmvl.data.converters.safe_pickle import load_plain_pickle
from medmvl.errors import DataError

#: our split -> names in the official files and in the mirror
SPLITS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


def run(job: Job) -> Rows:
    """Yield the records of the layout that is found."""
    base = next((b for b in (job.source, job.source / "pvqa") if (b / "qas").is_dir()), None)
    if base is not None:
        yield from _official(job, base)
    elif job.find("*.parquet"):
        job.report.note("The hub mirror names no answer type: answers that are exactly yes or no count as CLOSED.")
        for split, names in SPLITS.items():
            yield from ((split, record) for record in mirror_records(job, split, names, "pathvqa"))
    else:
        raise DataError(f"{job.source} holds neither qas/ nor parquet files. {PATH_VQA.layout}")


def _official(job: Job, base: Path) -> Rows:
    for split, (name, *_) in SPLITS.items():
        typed, plain = base / "qas" / f"{name}_vqa.pkl", base / "qas" / name / f"{name}_qa.pkl"
        if typed.is_file():
            rows = load_plain_pickle(typed)
        elif plain.is_file():
            job.report.note(f"{plain.name} names no answer type: answers that are exactly yes or no count as CLOSED.")
            rows = load_plain_pickle(plain)
        else:
            job.report.note(f"No question file of the split {split!r}; it was not converted.")
            continue
        yield from ((split, record) for record in _questions(job, base, name, rows, split != "train"))


def _questions(job: Job, base: Path, name: str, rows: Any, evaluation: bool) -> Iterator[Record]:
    for number, row in enumerate(rows):
        image = str(row.get("img_id", row.get("image", "")))
        identifier = f"pathvqa-{name}-{row.get('question_id', number)}"
        question = str(row.get("sent", row.get("question", ""))).strip()
        answer = _answer(row)
        if not question or not answer:
            job.report.fault("empty question or answer", identifier)
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


PATH_VQA = DATASETS.add(
    "path-vqa",
    Converter(
        name="path-vqa",
        title="PathVQA (He et al., 2020)",
        license="Questions MIT; images belong to their publishers (PEIR, textbooks): research use.",
        homepage="https://github.com/UCSD-AI4H/PathVQA (mirror: flaviagiammarino/path-vqa on the Hugging Face hub)",
        layout="pvqa/qas/{train,val,test}_vqa.pkl with pvqa/images/{train,val,test}/*.jpg, or the mirror's parquet files.",
        run=run,
    ),
)
