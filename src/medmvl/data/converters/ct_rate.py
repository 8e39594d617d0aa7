"""CT-RATE: chest CT volumes with reports, 18 labels, and questions of four kinds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, dialog_record, yes_or_no
from medmvl.data.converters.ct_rate_release import find_release
from medmvl.data.converters.ct_rate_volumes import Volumes
from medmvl.data.tables import iter_json_array
from medmvl.errors import DataError

#: split -> names of its tables; the data set itself mixes "valid" and "validation"
TABLES = {
    "train": {"reports": "train_reports", "labels": "train_predicted_labels", "metadata": "train_metadata"},
    "valid": {"reports": "validation_reports", "labels": "valid_predicted_labels", "metadata": "validation_metadata"},
}
#: id prefix in the vqa json -> task
TASKS = {
    "long_answer": "long",
    "short_answer": "short",
    "multiple_choice": "choice",
    "report_generation": "report",
}
REPORT_PROMPT = "Generate radiology report for the CT."
_TAG = re.compile(r"<(?!image>|image3d>|volume>)[a-z_ ]+>", re.IGNORECASE)
_IMAGE = re.compile(r"<(?:image|image3d|volume)>\s*")
_EMPTY = ("", "not given.", "not given")


class CtRateOptions(Options):
    """Settings of the CT-RATE converter."""

    tasks: str = Field("long,short,choice,report", description="comma-separated: long, short, choice, report")
    train_form: Literal["dialog", "split"] = Field(
        "dialog", description="train items as one dialog, or a question each"
    )
    valid_form: Literal["dialog", "split"] = Field("split", description="valid questions with their history, or alone")
    volumes: Literal["auto", "fixed", "original"] = Field("auto", description="which release; auto prefers *_fixed")
    folder: str | None = Field(None, description="ready volumes instead, e.g. preprocessed_npy/{split} below dataset/")
    reports: Literal["auto", "vqa", "csv"] = Field("auto", description="report task from the vqa json or the csv")
    reconstructions: Literal["all", "first"] = Field("all", description="all volumes of a scan, or its first")
    text_only: bool = Field(True, description="keep the items without a volume (from PubMed articles)")


def run(job: Job) -> Rows:
    """Yield the records of both splits."""
    base = job.source / "dataset" if (job.source / "dataset").is_dir() else job.source
    tasks = {task.strip() for task in job.options.tasks.split(",")}
    unknown = tasks - set(TASKS.values())
    if unknown:
        raise DataError(f"CT-RATE has no task {sorted(unknown)}. Allowed: {', '.join(TASKS.values())}.")
    job.report.note("The 18 labels are predictions of a text classifier from the reports, not manual labels.")
    found = {split: find_release(job, base, split) for split in TABLES}
    releases = {split: release for split, release in found.items() if release is not None}
    if not releases:
        raise DataError(f"{job.source} holds no volumes. {CT_RATE.layout}")
    export = any(release.kind != "ready" for release in releases.values())
    for split, release in releases.items():
        volumes = Volumes(job, base, split, release, export=export)
        yield from ((split, record) for record in _split(job, base, split, tasks, volumes))


def _split(job: Job, base: Path, split: str, tasks: set[str], volumes: Volumes) -> Iterator[Record]:
    vqa = base / "vqa" / f"{split}_vqa.json"
    source = job.options.reports
    if source == "auto":
        source = "vqa" if vqa.is_file() else "csv"
    wanted = tasks if source == "vqa" else tasks - {"report"}
    labels = _Labels(base, split, job)
    if wanted:
        for item in iter_json_array(vqa):
            yield from _convert_item(job, item, split, wanted, volumes, labels)
    if "report" in tasks and source == "csv":
        yield from _reports_from_csv(job, base, split, volumes, labels)


class _Labels:
    """The 18 labels of every volume, one byte each: the train split has 47,149 volumes."""

    def __init__(self, base: Path, split: str, job: Job) -> None:
        self._names: list[str] = []
        self._values: dict[str, bytes] = {}
        file = base / "multi_abnormality_labels" / f"{TABLES[split]['labels']}.csv"
        if not file.is_file():
            job.report.note(f"No label table {file.name}: the records carry no labels.")
            return
        for row in job.rows(file, ["VolumeName"]):
            name = row.pop("VolumeName")
            self._names = list(row)
            self._values[name] = bytes(int(float(value or 0)) for value in row.values())

    def get(self, volume: str) -> dict[str, int] | None:
        """Return finding -> 0 or 1 of a volume; None for one that is not in the table."""
        values = self._values.get(volume)
        return None if values is None else dict(zip(self._names, values, strict=True))


def _convert_item(
    job: Job, item: Any, split: str, tasks: set[str], volumes: Volumes, labels: _Labels
) -> Iterator[Record]:
    """Yield the records of one item of the vqa json."""
    if not isinstance(item, dict) or not item.get("conversations"):
        job.report.fault("item without 'conversations'", f"{split} {str(item)[:60]}")
        return
    identifier = str(item.get("id", ""))
    task = _task(item)
    if task is None:
        job.report.fault("kind of question not recognized", identifier)
        return
    if task not in tasks:
        job.report.skip(f"task {task}")
        return
    path, facts = None, {}
    name = item.get("image")
    if name is None and not job.options.text_only:
        job.report.skip("text-only item")
        return
    if name is not None:
        name = str(name).rsplit("/", 1)[-1]
        path = volumes.path(name)
        if path is None:
            return
        facts = volume_facts(name)
        if task == "report":
            facts["labels"] = labels.get(name)
    turns = _turns(item, identifier, job)
    if turns:
        yield from _shape(job, f"{split}_{identifier}", task, turns, path, facts, split)


def _task(item: dict[str, Any]) -> str | None:
    """Return the task of an item: by the prefix of its id, else by the tag that closes its first question."""
    for prefix, task in TASKS.items():
        if str(item.get("id", "")).startswith(prefix):
            return task
    first = str(item["conversations"][0].get("value", ""))
    return next((task for tag, task in TASKS.items() if first.rstrip().endswith(f"<{tag}>")), None)


def _turns(item: dict[str, Any], identifier: str, job: Job) -> list[tuple[str, str, str | None]]:
    """Return (question, answer, type) of every complete turn; tags and placeholders are removed from the questions."""
    speeches = item["conversations"]
    turns = []
    for human, gpt in zip(speeches[::2], speeches[1::2], strict=False):
        if human.get("from") != "human" or gpt.get("from") != "gpt":
            job.report.fault("turns do not alternate between human and gpt", identifier)
            return []
        question = _TAG.sub("", _IMAGE.sub("", str(human.get("value", "")))).strip()
        answer = str(gpt.get("value") or "").strip()
        if not question or answer.lower() in _EMPTY:
            job.report.fault("empty question or answer", identifier)
            continue
        turns.append((question, answer, human.get("type")))
    if len(speeches) % 2:
        job.report.fault("last question has no answer", identifier)
    return turns


def _shape(
    job: Job,
    identifier: str,
    task: str,
    turns: list[tuple[str, str, str | None]],
    path: str | None,
    facts: dict[str, Any],
    split: str,
) -> Iterator[Record]:
    """Yield an item in the chosen form: one dialog, single questions, or questions with their history."""
    evaluation = split != "train"
    form = job.options.valid_form if evaluation else job.options.train_form
    pairs = [(question, answer) for question, answer, _ in turns]
    if form == "dialog" and not evaluation:
        kind = turns[0][2]
        yield dialog_record(identifier, pairs, volume=path, task=task, question_type=kind, **facts)
        return
    for number, (_, answer, kind) in enumerate(turns):
        history = pairs[: number + 1] if form == "dialog" else [pairs[number]]
        own = identifier if len(turns) == 1 else f"{identifier}_{number}"
        answer_type = ("CLOSED" if yes_or_no(answer) else "OPEN") if task == "short" else None
        extra = {"task": task, "question_type": kind, "answer_type": answer_type, **facts}
        yield dialog_record(own, history, volume=path, evaluation=evaluation, **extra)


def _reports_from_csv(job: Job, base: Path, split: str, volumes: Volumes, labels: _Labels) -> Iterator[Record]:
    """Yield report records from the table of reports: "Findings: ... Impression: ..."."""
    file = base / "radiology_text_reports" / f"{TABLES[split]['reports']}.csv"
    for row in job.rows(file, ["VolumeName", "Findings_EN", "Impressions_EN"]):
        name = row["VolumeName"]
        path = volumes.path(name)
        if path is None:
            continue
        findings, impression = row["Findings_EN"], row["Impressions_EN"]
        parts = [("Findings", findings), ("Impression", impression)]
        text = " ".join(f"{head}: {body}" for head, body in parts if body.lower() not in _EMPTY)
        if not text:
            job.report.fault("report is empty", name)
            continue
        extra = {"task": "report", "labels": labels.get(name), **volume_facts(name)}
        identifier = f"{split}_report_{name.split('.')[0]}"
        pairs = [(REPORT_PROMPT, text)]
        yield dialog_record(identifier, pairs, volume=path, evaluation=split != "train", **extra)


def volume_facts(name: str) -> dict[str, Any]:
    """Return patient and scan of a volume name: "train_1_a_2.nii.gz" is patient train_1, scan train_1_a."""
    parts = name.split(".")[0].split("_")
    return {"patient": "_".join(parts[:2]), "scan": "_".join(parts[:3])}


CT_RATE = DATASETS.add(
    "ct-rate",
    Converter(
        name="ct-rate",
        title="CT-RATE (Hamamci et al., 2024)",
        license="CC BY-NC-SA 4.0, gated, no redistribution.",
        homepage="https://huggingface.co/datasets/ibrahimhamamci/CT-RATE (accept the conditions there)",
        layout="dataset/{train,valid}_fixed/train_1/train_1_a/train_1_a_1.nii.gz (or the original train/ and valid/), "
        "dataset/vqa/{train,valid}_vqa.json, radiology_text_reports/, multi_abnormality_labels/, metadata/.",
        run=run,
        options=CtRateOptions,
    ),
)
