"""RadGenome-ChestCT: reports by region and five kinds of questions about CT-RATE's volumes.

Sources of the layout: the tree of the hub's RadGenome/RadGenome-ChestCT (dataset/radgenome_files/*.csv,
dataset/qa_templates/*.json, dataset/{train,valid}_preprocessed/train_1/train_1a/train_1_a_1.nii.gz), and the authors'
own reader and csv2json.py, which name the columns of every table and the placeholders of the templates.
The tables hold no questions: the authors fill their templates when training. Test questions use the first template,
training questions any of them. The masks of regions and organs are not used here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import Field

from medmvl.data.converters.boxtext import phrase
from medmvl.data.converters.converter import DATASETS, Converter, Job, Record, Rows, qa_record, yes_or_no
from medmvl.data.converters.ct_rate import volume_facts
from medmvl.data.converters.ct_rate_derived import CtRateVolumeOptions, open_volumes
from medmvl.data.converters.ct_rate_volumes import Volumes
from medmvl.errors import DataError
from medmvl.files import read_json

WHOLE = "whole scan"  # the authors' word for a row without a region
#: CT-RATE's split -> beginning of the tables' names
TABLES = {"train": "train", "valid": "validation"}


@dataclass(frozen=True)
class Kind:
    """A kind of question.

    Attributes:
        table: end of the table's name.
        answer: column of the answer.
        subject: column of the abnormality that the question names, if any.
        template: name of the file and of the key of the authors' templates.
        own: our wording, used if that file is missing.
    """

    table: str
    answer: str
    subject: str | None
    template: str
    own: str


KINDS = {
    "abnormality": Kind(
        "vqa_abnormality", "Abnormality", None, "abnormality", "What abnormality is seen in the {region}?"
    ),
    "presence": Kind("vqa_presence", "Presence", "Finding", "presence", "Is there {abnormality} in the {region}?"),
    "location": Kind("vqa_location", "Anatomy", "Abnormality", "location", "Where is the {abnormality}?"),
    "size": Kind("vqa_size", "Size", "Abnormality", "size", "What is the size of the {abnormality} in the {region}?"),
    "disorder": Kind("case_disorders", "Disorders", None, "disorders", "Which disorders does this CT show?"),
}
TASKS = ("report", *KINDS)
REPORT_PROMPT = "Describe the findings of the {region} in this CT."


class RadGenomeOptions(CtRateVolumeOptions):
    """Settings of the RadGenome-ChestCT converter."""

    tasks: str = Field(",".join(TASKS), description=f"comma-separated: {', '.join(TASKS)}")


def run(job: Job) -> Rows:
    """Yield the records of every split whose volumes are there."""
    tasks = {task.strip() for task in job.options.tasks.split(",")}
    if tasks - set(TASKS):
        raise DataError(f"RadGenome-ChestCT has no task {sorted(tasks - set(TASKS))}. Allowed: {', '.join(TASKS)}.")
    folder = next((p for p in (*job.find("radgenome_files"), *job.find("dataset/radgenome_files")) if p.is_dir()), None)
    if folder is None:
        raise DataError(f"{job.source} holds no radgenome_files/. Expected: {RADGENOME_CHESTCT.layout}")
    for split, volumes in open_volumes(job, RADGENOME_CHESTCT.layout).items():
        for task in (task for task in TASKS if task in tasks):
            end = "region_report" if task == "report" else KINDS[task].table
            table = folder / f"{TABLES[split]}_{end}.csv"
            if not table.is_file():
                job.report.note(f"No {table.name}: the task {task!r} of the split {split!r} was not converted.")
            elif task == "report":
                yield from ((split, record) for record in _reports(job, table, split, volumes))
            else:
                yield from ((split, record) for record in _questions(job, table, split, task, volumes))


def _reports(job: Job, table: Path, split: str, volumes: Volumes) -> Iterator[Record]:
    """Yield a record per volume and region: all sentences about it, in the order of the table."""
    rows = job.rows(table, ["Volumename", "Anatomy", "Sentence"])
    for name, own in groupby(rows, lambda row: row["Volumename"]):
        path = volumes.path(name)
        if path is None:
            continue
        sentences: dict[str, list[str]] = {}
        for row in own:
            region = row["Anatomy"].split("/")[0].strip().lower() or WHOLE
            if row["Sentence"]:
                sentences.setdefault(region, []).append(" ".join(row["Sentence"].split()))
        for region, texts in sentences.items():
            yield qa_record(
                f"radgenome-report-{name.split('.')[0]}-{region.replace(' ', '-')}",
                REPORT_PROMPT.format(region=region),
                " ".join(dict.fromkeys(texts)),
                volume=path,
                evaluation=split != "train",
                task="report",
                question_type=region,
                **volume_facts(name),
            )


def _questions(job: Job, table: Path, split: str, task: str, volumes: Volumes) -> Iterator[Record]:
    kind = KINDS[task]
    templates = _templates(job, table.parent, kind)
    columns = dict.fromkeys(name for name in ("Volumename", kind.subject, kind.answer) if name)
    for number, row in enumerate(job.rows(table, columns)):
        answer = " ".join(row[kind.answer].split())
        subject = row[kind.subject].split(",")[0].strip() if kind.subject else ""
        if not answer or (kind.subject and not subject):
            job.report.skip("row with an empty cell")
            continue
        path = volumes.path(row["Volumename"])
        if path is None:
            continue
        identifier = f"radgenome-{task}-{split}-{number}"
        region = row.get("Anatomy", "")
        evaluation = split != "train"
        extra: dict[str, Any] = {"region": region or None, **volume_facts(row["Volumename"])}
        asked = phrase(templates, identifier, evaluation=evaluation)
        asked = asked.replace("{region}", region.split("/")[-1].strip() or WHOLE).replace("{abnormality}", subject)
        yield qa_record(
            identifier,
            asked,
            answer,
            volume=path,
            evaluation=evaluation,
            task="vqa",
            question_type=task,
            answer_type="CLOSED" if yes_or_no(answer) else "OPEN",
            **extra,
        )


def _templates(job: Job, folder: Path, kind: Kind) -> tuple[str, ...]:
    """Return the authors' wordings of a kind of question; ours, with a note, without their file."""
    file = folder.parent / "qa_templates" / f"{kind.template}_template.json"
    if not file.is_file():
        job.report.note(f"No qa_templates/{file.name}: these questions are in our own words.")
        return (kind.own,)
    found = read_json(file)
    templates = found.get(kind.template) if isinstance(found, dict) else None
    if not isinstance(templates, list) or not templates or not all(isinstance(text, str) for text in templates):
        raise DataError(f"{file} holds no list of wordings under {kind.template!r}.")
    return tuple(templates)


RADGENOME_CHESTCT = DATASETS.add(
    "radgenome-chestct",
    Converter(
        name="radgenome-chestct",
        title="RadGenome-ChestCT (Zhang et al., 2024)",
        license="CC BY 4.0 on the card (earlier versions: CC BY-NC-SA 4.0); CT-RATE's volumes are CC BY-NC-SA 4.0.",
        homepage="https://huggingface.co/datasets/RadGenome/RadGenome-ChestCT",
        layout="dataset/radgenome_files/{train,validation}_*.csv, dataset/qa_templates/*.json and "
        "dataset/{train,valid}_preprocessed/, or CT-RATE's dataset/{train,valid}_fixed/.",
        run=run,
        options=RadGenomeOptions,
    ),
)
