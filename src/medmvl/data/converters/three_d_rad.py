"""3D-RAD: six tasks of open and closed questions about CT-RATE's volumes.

Sources of the layout: the authors' repository Tang-xiaoxiao/3D-RAD (3DRAD/{train,test}/Task*/<subtask>.csv; the hub's
copy has no 3DRAD/ above) and its tables: Task, Subtask, VolumeName, Question, Answer, QuestionType (Open or Close),
AnswerChoice, Choice A ... Choice D, with "-" for an empty cell. Volumes named test_1_a_1 are CT-RATE's valid_1_a_1, as
readers of the data set map them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from medmvl.data.converters.choices import choice_record
from medmvl.data.converters.converter import DATASETS, Converter, Job, Record, Rows, qa_record
from medmvl.data.converters.ct_rate import volume_facts
from medmvl.data.converters.ct_rate_derived import CtRateVolumeOptions, open_volumes
from medmvl.data.converters.ct_rate_volumes import Volumes
from medmvl.errors import DataError

#: our split -> CT-RATE's
SPLITS = {"train": "train", "test": "valid"}
_COLUMNS = ["VolumeName", "Question", "Answer", "QuestionType", "AnswerChoice"]
_EMPTY = ("", "-")


class ThreeDRadOptions(CtRateVolumeOptions):
    """Settings of the 3D-RAD converter."""

    tasks: str = Field("1,2,3,4,5,6", description="comma-separated numbers of the tasks")


def run(job: Job) -> Rows:
    """Yield the records of both splits, task by task."""
    roots = (job.source, *(job.source / name for name in ("3DRAD", "3D-RAD", "3D-RAD/3DRAD")))
    root = next((root for root in roots if any(root.glob("t*/Task*/*.csv"))), None)
    if root is None:
        raise DataError(f"{job.source} holds no train/Task*/ or test/Task*/ tables. Expected: {THREE_D_RAD.layout}")
    wanted = {number.strip() for number in job.options.tasks.split(",")}
    if wanted - set("123456"):
        raise DataError(f"3D-RAD has no task {sorted(wanted - set('123456'))}. Allowed: 1 to 6.")
    volumes = open_volumes(job, THREE_D_RAD.layout)
    for split, theirs in SPLITS.items():
        if theirs not in volumes:
            continue
        for table in sorted((root / split).glob("Task*/*.csv")):
            if table.parent.name.removeprefix("Task")[:1] in wanted:
                yield from _table(job, table, split, volumes[theirs])


def _table(job: Job, table: Path, split: str, volumes: Volumes) -> Rows:
    for number, row in enumerate(job.rows(table, _COLUMNS)):
        name = row["VolumeName"]
        theirs = f"valid_{name.removeprefix('test_')}" if name.startswith("test_") else name
        path = volumes.path(theirs)
        if path is None:
            continue
        task = table.parent.name.partition("_")[0].lower()
        record = _record(job, f"3drad-{split}-{task}-{table.stem}-{number}", row, path, split, table)
        if record is not None:
            yield split, record | volume_facts(theirs)


def _record(job: Job, identifier: str, row: dict[str, str], path: str, split: str, table: Path) -> Record | None:
    facts: dict[str, Any] = {
        "volume": path,
        "evaluation": split != "train",
        "question_type": table.parent.name.partition("_")[2],
        "subtask": table.stem,
    }
    kind = row["QuestionType"].lower().removesuffix("d")
    if kind == "close":
        options = {letter: row.get(f"Choice {letter}", "") for letter in "ABCD"}
        options = {letter: text for letter, text in options.items() if text not in _EMPTY}
        answer = row["AnswerChoice"] if row["AnswerChoice"] not in _EMPTY else row["Answer"]
        return choice_record(job, identifier, row["Question"], options, answer, **facts)
    if kind != "open":
        job.report.fault("QuestionType is neither Open nor Close", identifier)
        return None
    if not row["Question"] or row["Answer"] in _EMPTY:
        job.report.fault("empty question or answer", identifier)
        return None
    question, answer = (" ".join(row[name].split()) for name in ("Question", "Answer"))
    return qa_record(identifier, question, answer, task="vqa", answer_type="OPEN", **facts)


THREE_D_RAD = DATASETS.add(
    "3d-rad",
    Converter(
        name="3d-rad",
        title="3D-RAD (arXiv 2506.11147, 2025)",
        license="Apache-2.0 on the card for the questions; CT-RATE's volumes are CC BY-NC-SA 4.0.",
        homepage="https://huggingface.co/datasets/Tang-xiaoxiao/3D-RAD and https://github.com/Tang-xiaoxiao/3D-RAD",
        layout="{train,test}/Task<n>_<name>/<subtask>.csv (also below 3DRAD/), and CT-RATE's {train,valid}_fixed/ next to them "
        "or below CT-RATE/dataset/.",
        run=run,
        options=ThreeDRadOptions,
    ),
)
