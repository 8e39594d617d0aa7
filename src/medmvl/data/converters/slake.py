"""SLAKE: bilingual questions about 642 images, with boxes of organs and lesions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medmvl.data.converters.boxtext import IDENTIFY, REFER, box_text, phrase
from medmvl.data.converters.converter import (
    DATASETS,
    ConversionReport,
    Converter,
    Job,
    Options,
    Record,
    Rows,
    dialog_record,
    qa_record,
)
from medmvl.data.converters.media import usable_source
from medmvl.errors import DataError
from medmvl.files import read_json
from medmvl.imaging.formats.pictures import open_picture
from medmvl.progress_bar import track

# The original archive says "validate.json", the hub mirror "validation.json".
_SPLIT_FILES = {
    "train": ("train.json",),
    "validation": ("validate.json", "validation.json"),
    "test": ("test.json",),
}


class SlakeOptions(Options):
    """Settings of the SLAKE converter."""

    language: Literal["en", "zh", "all"] = Field("en", description="which questions to keep")
    tasks: str = Field("vqa,refer,identify", description="comma-separated: vqa, refer, identify")
    multi_turn: bool = Field(False, description="training records hold all questions of an image, in shuffled order")
    turns: int = Field(12, ge=1, description="most questions in one multi-turn record")


def run(job: Job) -> Rows:
    """Yield the records of every split that is there."""
    root = _root(job.source)
    tasks = {task.strip() for task in job.options.tasks.split(",")}
    unknown = tasks - {"vqa", "refer", "identify"}
    if unknown:
        raise DataError(f"SLAKE has no task {sorted(unknown)}. Allowed: vqa, refer, identify.")
    files: dict[str, Path] = {}
    for split, names in _SPLIT_FILES.items():
        file = next((root / name for name in names if (root / name).is_file()), None)
        if file is None:
            job.report.note(f"No file of the split {split!r} ({' or '.join(names)}); it was not converted.")
        else:
            files[split] = file
    excluded = _images_of_later_splits(job, files)
    for split, file in files.items():
        yield from ((split, record) for record in _split(job, root, file, split, tasks, excluded[split]))


def _images_of_later_splits(job: Job, files: dict[str, Path]) -> dict[str, set[str]]:
    """Return split -> images to leave out of it, because a later split has them too.

    SLAKE splits the images of each language separately, so most test images of one language are training images of the
    other. A conversion of one language keeps its published split; the report counts what the other language shares.
    """
    images: dict[str, set[str]] = {split: set() for split in _SPLIT_FILES}
    kept: dict[str, set[str]] = {split: set() for split in _SPLIT_FILES}
    for split, file in files.items():
        for row in _rows(file):
            images[split].add(_image_of(row))
            if job.options.language in ("all", _language(row)):
                kept[split].add(_image_of(row))
    later = {"train": images["validation"] | images["test"], "validation": images["test"], "test": set()}
    if job.options.language == "all":
        return {split: later[split] - {""} for split in files}
    shared = len(kept["train"] & later["train"] - kept["validation"] - kept["test"] - {""})
    if shared:
        job.report.note(
            f"{shared} training images are validation or test images of the other language. Do not train on one "
            "language and test on the other; language=all leaves such images out of training."
        )
    return {split: set() for split in files}


def _language(row: Any) -> str:
    return str(row.get("q_lang", "en")) if isinstance(row, dict) else ""


def _image_of(row: Any) -> str:
    return str(row.get("img_name") or "") if isinstance(row, dict) else ""


def _root(source: Path) -> Path:
    for root in (source, source / "Slake1.0", source / "SLAKE"):
        if (root / "train.json").is_file() or (root / "test.json").is_file():
            return root
    raise DataError(f"{source} holds no train.json or test.json. {SLAKE.layout}")


def _rows(file: Path) -> list[Any]:
    rows = read_json(file)
    if not isinstance(rows, list):
        raise DataError(f"{file} must hold a JSON array of questions.")
    return rows


def _split(job: Job, root: Path, file: Path, split: str, tasks: set[str], excluded: set[str]) -> Iterator[Record]:
    images = _Images(job.source, root, job.report)
    evaluation = split != "train"
    by_image: dict[str, list[dict[str, Any]]] = {}
    for row in track(_rows(file), f"questions, {split}"):
        if _image_of(row) in excluded:
            job.report.skip("question about an image that a later split has too")
            continue
        checked = _checked(row, file, job)
        if checked is not None and images.size(checked["img_name"]) is not None:
            by_image.setdefault(checked["img_name"], []).append(checked)
    for name, questions in track(by_image.items(), f"images, {split}"):
        if "vqa" in tasks:
            if job.options.multi_turn and not evaluation:
                yield from _dialogs(name, questions, images, job.options.turns)
            else:
                yield from (_question(row, images, evaluation) for row in questions)
        yield from _box_records(name, images, tasks, job, evaluation)


def _checked(row: Any, file: Path, job: Job) -> dict[str, Any] | None:
    """Return the row if it can be used, else count it and return None."""
    if not isinstance(row, dict) or not isinstance(row.get("img_name"), str):
        job.report.fault("not a question with an 'img_name'", f"{file.name}: {str(row)[:60]}")
        return None
    language = row.get("q_lang", "en")
    if job.options.language not in ("all", language):
        job.report.skip(f"language is {language!r}")
        return None
    if not str(row.get("question") or "").strip() or not str(row.get("answer") or "").strip():
        job.report.fault("empty question or answer", f"qid {row.get('qid')}")
        return None
    return row


class _Images:
    """The pictures by name: their path relative to the source, and their size, read once."""

    def __init__(self, source: Path, root: Path, report: ConversionReport) -> None:
        self._source, self._folder, self._report = source, root / "imgs", report
        self._sizes: dict[str, tuple[int, int] | None] = {}

    def path(self, name: str) -> str:
        return (self._folder / name).relative_to(self._source).as_posix()

    def size(self, name: str) -> tuple[int, int] | None:
        """Return (width, height), or None after counting a missing or unreadable picture as faulty."""
        if name not in self._sizes:
            self._sizes[name] = self._read(name)
            return self._sizes[name]
        if self._sizes[name] is None:
            self._report.fault("question about an unreadable image", name)
        return self._sizes[name]

    def _read(self, name: str) -> tuple[int, int] | None:
        file = self._folder / name
        if fault := usable_source(file, self._source):
            self._report.fault(fault, name)
            return None
        try:
            with open_picture(file) as picture:
                return picture.size
        except OSError:  # also Pillow's for an unknown format
            self._report.fault("image is not readable", name)
        return None

    def boxes(self, name: str) -> list[tuple[str, list[float]]]:
        """Return the (object, [x, y, w, h]) of a picture from detection.json; none without that file."""
        file = (self._folder / name).with_name("detection.json")
        if not file.is_file():
            return []
        entries = read_json(file)
        if isinstance(entries, dict):  # one dictionary instead of a list of one-key dictionaries
            entries = [entries]
        return [(key, value) for entry in entries if isinstance(entry, dict) for key, value in entry.items()]


def _patient(name: str) -> str:
    """Return the cluster of an image; SLAKE names no patients, so an image stands for one."""
    return name.split("/")[0]


def _question(row: dict[str, Any], images: _Images, evaluation: bool) -> Record:
    return qa_record(
        f"slake-{row.get('qid', row['question'])}",
        str(row["question"]).strip(),
        str(row["answer"]).strip(),
        image=images.path(row["img_name"]),
        evaluation=evaluation,
        task="vqa",
        patient=_patient(row["img_name"]),
        answer_type=row.get("answer_type"),
        question_type=row.get("content_type"),
        content_type=row.get("content_type"),
        base_type=row.get("base_type"),
        modality=row.get("modality"),
        location=row.get("location"),
        language=row.get("q_lang", "en"),
    )


def _dialogs(name: str, rows: list[dict[str, Any]], images: _Images, turns: int) -> Iterator[Record]:
    """Yield records with many questions about one image, shuffled so that position does not reveal the answer."""
    shuffled = random.Random(name).sample(rows, len(rows))
    for number, start in enumerate(range(0, len(shuffled), turns)):
        pairs = [(str(r["question"]).strip(), str(r["answer"]).strip()) for r in shuffled[start : start + turns]]
        identifier = f"slake-{_patient(name)}-{number}"
        yield dialog_record(identifier, pairs, image=images.path(name), task="vqa", patient=_patient(name))


def _box_records(name: str, images: _Images, tasks: set[str], job: Job, evaluation: bool) -> Iterator[Record]:
    size = images.size(name)
    if size is None or not tasks & {"refer", "identify"}:
        return
    pairs: list[tuple[str, str]] = []
    for number, (thing, box) in enumerate(images.boxes(name)):
        key = f"{_patient(name)}-{number}"
        if not _inside(box, size):
            job.report.fault("box is empty or outside the image", f"{name}: {thing} {box}")
            continue
        text = box_text(box, size)
        asked = {
            "refer": (phrase(REFER, key, evaluation=evaluation).format(object=thing), text),
            "identify": (phrase(IDENTIFY, key, evaluation=evaluation).format(box=text), thing),
        }
        for task in sorted(tasks & set(asked)):
            if job.options.multi_turn and not evaluation:
                pairs.append(asked[task])
                continue
            yield qa_record(
                f"slake-{task}-{key}",
                *asked[task],
                image=images.path(name),
                evaluation=evaluation,
                task=task,
                boxes=[box],
                image_size=list(size),
                object=thing,
                patient=_patient(name),
            )
    random.Random(name).shuffle(pairs)
    for number, start in enumerate(range(0, len(pairs), job.options.turns)):
        part = pairs[start : start + job.options.turns]
        identifier = f"slake-boxes-{_patient(name)}-{number}"
        yield dialog_record(identifier, part, image=images.path(name), task="boxes", patient=_patient(name))


def _inside(box: Any, size: tuple[int, int]) -> bool:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        return False
    x, y, w, h = box
    return w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= size[0] + 1 and y + h <= size[1] + 1


SLAKE = DATASETS.add(
    "slake",
    Converter(
        name="slake",
        title="SLAKE 1.0 (Liu et al., ISBI 2021)",
        license="CC BY 4.0",
        homepage="https://www.med-vqa.com/slake/ (mirror: BoKelvin/SLAKE on the Hugging Face hub)",
        layout="train.json, validate.json (or validation.json), test.json and imgs/xmlabN/{source.jpg, detection.json}.",
        run=run,
        options=SlakeOptions,
    ),
)
