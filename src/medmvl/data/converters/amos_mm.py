"""AMOS-MM: chest, abdomen and pelvis CT with reports and multiple-choice questions (MICCAI 2024 challenge)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.converters.media import relative_media
from medmvl.errors import DataError
from medmvl.files import read_json
from medmvl.progress_bar import track

#: in both zips; they belong to validation
SHARED_IDS = ("7008", "7312", "7333")
REGIONS = ("chest", "abdomen", "pelvis")
_SPLITS = {"training": "train", "validation": "validation", "val": "validation", "test": "test"}
_FILES = {"report": "report_generation_train_val.json", "vqa": "vqa_train_val.json"}


class AmosOptions(Options):
    """Settings of the AMOS-MM converter."""

    tasks: str = Field("report,choice", description="comma-separated: report, choice")
    report: Literal["regions", "whole"] = Field("whole", description="one report per volume, or one per body region")
    impression: bool = Field(False, description="append the impression to whole reports; the challenge scores findings")


def run(job: Job) -> Rows:
    """Yield the records of the report file and of the question file."""
    tasks = {task.strip() for task in job.options.tasks.split(",")}
    if tasks - {"report", "choice"}:
        raise DataError(f"AMOS-MM has no task {sorted(tasks)}. Allowed: report, choice.")
    readers = {"report": ("report", _reports), "choice": ("vqa", _choices)}
    found = False
    for task in sorted(tasks):
        key, read = readers[task]
        file = next(iter(job.find(_FILES[key])), None)
        if file is None:
            job.report.note(f"No {_FILES[key]}; the task {task!r} was not converted.")
            continue
        found = True
        for split, item in _items(job, read_json(file)):
            path = _volume(job, file.parent, item)
            if path is not None:
                yield from ((split, record) for record in read(job, item, path, split != "train"))
    if not found:
        raise DataError(f"{job.source} holds neither {' nor '.join(_FILES.values())}. {AMOS_MM.layout}")


def _items(job: Job, table: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (split, item); the three ids that are in both zips count as validation, once."""
    if not isinstance(table, dict):
        raise DataError("An AMOS-MM json holds an object with 'training' and 'validation'.")
    seen: set[str] = set()
    for name in ("validation", "val", "test", "training"):
        for item in track(table.get(name, []), f"scans, {name}"):
            stem = _stem(item)
            split = _SPLITS[name]
            if stem.removeprefix("amos_") in SHARED_IDS:
                split = "validation"
            if stem in seen:
                job.report.skip("volume that is in training and validation; kept for validation")
                continue
            seen.add(stem)
            yield split, item


def _stem(item: dict[str, Any]) -> str:
    return Path(str(item.get("image", ""))).name.split(".")[0]


def _volume(job: Job, root: Path, item: dict[str, Any]) -> str | None:
    inside = str(item.get("image", "")).removeprefix("./")
    name = Path(inside).name
    return relative_media(job, root / inside, root / "imagesVa" / name, root / "imagesTr" / name, kind="volume")


def _reports(job: Job, item: dict[str, Any], path: str, evaluation: bool) -> Iterator[Record]:
    report = (item.get("labels") or {}).get("report") or {}
    findings = report.get("findings") or {}
    impression = " ".join(str(report.get("impression") or "").split())
    texts = {r: " ".join(str(findings.get(r) or "").split()) for r in REGIONS}
    present = {region: text for region, text in texts.items() if text}
    stem = _stem(item)
    if not present:
        job.report.skip("volume without a report")
        return
    facts: dict[str, Any] = {"volume": path, "evaluation": evaluation, "task": "report", "patient": stem}
    if job.options.report == "whole":
        text = " ".join(f"{region.capitalize()}: {text}" for region, text in present.items())
        if impression and job.options.impression:
            text += f" Impression: {impression}"
        elif impression:
            job.report.note(
                "Reports hold the findings of the regions; impressions are left out (--set impression=true)."
            )
        yield qa_record(f"amos-report-{stem}", "Generate a radiology report for the CT.", text, **facts)
        return
    for region, text in present.items():
        question = f"Describe the findings of the {region} in this CT."
        yield qa_record(f"amos-report-{stem}-{region}", question, text, question_type=region, **facts)


def _choices(job: Job, item: dict[str, Any], path: str, evaluation: bool) -> Iterator[Record]:
    stem = _stem(item)
    for number, row in enumerate((item.get("labels") or {}).get("qa") or []):
        identifier = f"amos-choice-{stem}-{number}"
        options = row.get("options") or {}
        letter = str(row.get("answer", "")).strip().strip("().").upper()[:1]
        if not row.get("question") or letter not in options:
            job.report.fault("question without options or with an answer that is none of them", identifier)
            continue
        listed = " ".join(f"({key.lower()}) {text}" for key, text in sorted(options.items()))
        yield qa_record(
            identifier,
            f"{str(row['question']).strip()} {listed}",
            f"({letter.lower()}) {options[letter]}",
            volume=path,
            evaluation=evaluation,
            task="choice",
            patient=stem,
            question_type=row.get("type"),
        )


AMOS_MM = DATASETS.add(
    "amos-mm",
    Converter(
        name="amos-mm",
        title="AMOS-MM (MICCAI 2024 challenge)",
        license="CC BY-ND 4.0 by its license field.",
        homepage="https://era-ai-biomed.github.io/amos/dataset.html",
        layout="imagesTr/, imagesVa/, report_generation_train_val.json and vqa_train_val.json.",
        run=run,
        options=AmosOptions,
    ),
)
