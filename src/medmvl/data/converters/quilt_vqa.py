"""Quilt-VQA: 1,283 questions about 985 frames of histopathology videos; a benchmark, so that all of it is "test".

Sources of the layout:
- The files of the hub's wisdomik/Quilt_VQA: quilt_vqa.zip (images), quiltvqa_test_w_ans.json and
  quiltvqa_test_wo_ans.jsonl. Their keys are in Quilt-LLaVA's scripts: quilt_eval.py reads id, answer, answer_type and, for
  CLOSED questions, yes_no_answer; model_vqa.py reads question_id, image and text.
- The same hub's parquet file (985 rows; image, question, answer, answer_type, context), whose only split is called train.
Not verified: whether the JSON file has question and image itself; both are taken from there or, by id, from the other.
Not verified either: which frames are of one video, so an image stands for a patient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medmvl.data.converters.checked import iter_objects
from medmvl.data.converters.converter import DATASETS, Converter, Job, Record, Rows, qa_record
from medmvl.data.converters.media import export_bytes, relative_media
from medmvl.data.tables import iter_json_array, iter_parquet
from medmvl.errors import DataError
from medmvl.files import iter_jsonl

ANSWERS, QUESTIONS = "quiltvqa_test_w_ans.json", "quiltvqa_test_wo_ans.jsonl"
ANSWER_TYPES = ("OPEN", "CLOSED")
_FOLDERS = ("images", "quilt_vqa/images", "quilt_vqa", "")


def run(job: Job) -> Rows:
    """Yield the questions of the JSON files or, without them, of the parquet file."""
    answers = next(iter(job.find(ANSWERS)), None)
    if answers is not None:
        yield from _release(job, answers)
    elif job.find("*.parquet"):
        yield from _parquet(job)
    else:
        raise DataError(f"{job.source} holds neither {ANSWERS} nor a parquet file. Expected: {QUILT_VQA.layout}")


def _release(job: Job, answers: Path) -> Rows:
    file = answers.with_name(QUESTIONS)
    asked = {}
    if file.is_file():
        asked = {str(row.get("question_id")): row for row in iter_objects(job, iter_jsonl(file), file.name)}
    for number, item in enumerate(iter_objects(job, iter_json_array(answers), answers.name)):
        identifier = str(item.get("id", number))
        other = asked.get(identifier, {})
        name = str(item.get("image") or other.get("image") or "")
        path = relative_media(job, *(answers.parent / folder / name for folder in _FOLDERS)) if name else None
        if path is None:
            job.report.fault("question without an image", identifier)
            continue
        question = str(item.get("question") or other.get("text") or "")
        yield from _record(job, identifier, question, item, path)


def _parquet(job: Job) -> Rows:
    job.report.note("The parquet file is called train, but holds the benchmark: all of it is 'test'.")
    number = 0
    for file in job.find("*.parquet"):
        for row in iter_parquet(file, ["image", "question", "answer", "answer_type"]):
            number += 1
            data = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            path = export_bytes(job, data or b"", "images/test")
            if path is None:
                job.report.fault("image is not readable", str(number))
                continue
            yield from _record(job, str(number), str(row["question"] or ""), row, path)


def _record(job: Job, identifier: str, question: str, item: dict[str, Any], path: str) -> Rows:
    """Yield the record of a question; a CLOSED one is answered by `yes_no_answer` where there is one, as it is scored."""
    text = " ".join(str(item.get("answer") or "").split())
    kind = str(item.get("answer_type") or "").strip().upper()
    if kind not in ANSWER_TYPES or not question.strip() or not text:
        job.report.fault("question without a text, an answer, or the type OPEN or CLOSED", identifier)
        return
    short = str(item.get("yes_no_answer") or "").strip()
    closed = kind == "CLOSED" and bool(short)
    if kind == "CLOSED" and not closed:
        job.report.note("Some CLOSED questions have no yes_no_answer: their answer is the whole sentence.")
    record: Record = qa_record(
        f"quiltvqa-{identifier}",
        " ".join(question.replace("<image>", " ").split()),
        short if closed else text,
        image=path,
        evaluation=True,
        task="vqa",
        patient=Path(path).stem,
        answer_type=kind,
        long_answer=text if closed else None,
    )
    yield "test", record


QUILT_VQA = DATASETS.add(
    "quilt-vqa",
    Converter(
        name="quilt-vqa",
        title="Quilt-VQA (Seyfioglu et al., CVPR 2024)",
        license="CC BY-NC-ND 3.0 as stated by readers of its gated card: check there before use.",
        homepage="https://huggingface.co/datasets/wisdomik/Quilt_VQA (accept the conditions there)",
        layout=f"{ANSWERS}, {QUESTIONS} and the unpacked quilt_vqa.zip (quilt_vqa/images/ or images/); or the parquet file.",
        run=run,
    ),
)
