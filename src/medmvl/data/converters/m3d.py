"""M3D: captions (M3D-Cap) and five kinds of questions (M3D-VQA) about volumes from Radiopaedia."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows, qa_record
from medmvl.data.converters.m3d_raw import has_raw, iter_raw
from medmvl.data.converters.media import relative_media
from medmvl.errors import DataError
from medmvl.files import read_json
from medmvl.progress_bar import track

CAPTION_PROMPT = "Generate a radiology report for the volume."
_LEAST_CAPTION = 5
QUESTION_TYPES = {"1": "plane", "2": "phase", "3": "organ", "4": "abnormality", "5": "location"}
_SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_COLUMNS = ["Image Path", "Question Type", "Question", "Answer"]
SPLIT_NOTE = (
    "M3D's own split was drawn by image, so that a case may stand in several splits: `medmvl data audit` lists them. The images "
    "are Radiopaedia's, and public copies were taken down: use one that you may use."
)
NOT_HU = "M3D volumes are windowed 8-bit pictures scaled to 0..1: arbitrary units, no HU window applies."


class CapOptions(Options):
    """Settings of the M3D-Cap converter."""

    prompt: str = Field(CAPTION_PROMPT, description="the request before every caption")


class VqaOptions(Options):
    """Settings of the M3D-VQA converter."""

    form: Literal["both", "open", "closed"] = Field("both", description="ask with choices, without, or each way")


def run_cap(job: Job) -> Rows:
    """Yield the records of M3D_Cap.json: split -> [{image, text}], where text is the path of a text file."""
    index = next(iter(job.find("M3D_Cap.json")), None)
    job.report.note(NOT_HU)
    job.report.note(SPLIT_NOTE)
    if index is None and has_raw(job):
        yield from (("train", record) for record in _raw(job))
        return
    if index is None:
        raise DataError(f"{job.source} holds neither M3D_Cap.json nor ct_case/. {M3D_CAP.layout}")
    for name, items in read_json(index).items():
        for item in track(items, f"captions, {name}"):
            record = _caption(job, index.parent, name, item)
            if record is not None:
                yield _SPLIT_NAMES.get(name, name), record


def _raw(job: Job) -> Iterator[Record]:
    """Yield the records of the downloaded folders; without M3D_Cap.json their split is unknown."""
    job.report.note("No M3D_Cap.json: the split is unknown, and everything is 'train'.")
    for case, path, text in iter_raw(job):
        caption = caption_text(text)
        if not caption:
            job.report.fault("caption is empty", case)
            continue
        identifier = f"m3d-cap-{case}-{Path(path).stem}"
        yield qa_record(identifier, job.options.prompt, caption, volume=path, task="report", patient=case)


def _caption(job: Job, root: Path, name: str, item: dict[str, Any]) -> Record | None:
    image, text = str(item.get("image", "")), str(item.get("text", ""))
    path = _volume(job, root, image)
    if path is None:
        return None
    file = next((f for f in _places(root, text) if text.endswith(".txt") and f.is_file()), None)
    if file is None and text.endswith(".txt"):
        job.report.fault("caption file is missing", text)
        return None
    caption = caption_text(file.read_text(encoding="utf-8", errors="replace") if file else text)
    if not caption:
        job.report.fault("caption is empty", image)
        return None
    identifier = f"m3d-cap-{Path(image).with_suffix('').as_posix()}"
    evaluation = _SPLIT_NAMES.get(name, name) != "train"
    facts = {"task": "report", "patient": _case(image)}
    return qa_record(identifier, job.options.prompt, caption, volume=path, evaluation=evaluation, **facts)


def caption_text(raw: str) -> str:
    """Return the text after "study_findings:", else after "discussion:", else all of it, on one line."""
    for heading, least in (("study_findings:", _LEAST_CAPTION), ("discussion:", 1)):
        _, found, rest = raw.partition(heading)
        # Under five characters are no findings (m3d_cap_data_prepare.py): often a single full stop.
        if found and len(rest.partition("discussion:")[0].strip()) >= least:
            raw = rest
            break
    return " ".join(raw.split())


def _places(root: Path, name: str) -> list[Path]:
    """Return candidate paths of a file of the index; its paths start at different folders in different copies."""
    inside = re.sub(r"^(?:\./)?(?:M3D_Cap(?:_npy)?/)?", "", name)
    bases = (root, root.parent, root / "M3D_Cap_npy", root.parent / "M3D_Cap_npy", root / "M3D_Cap")
    return [root / name, root.parent / name, *(base / inside for base in bases)]


def _volume(job: Job, root: Path, image: str) -> str | None:
    inside_source = [place for place in _places(root, image) if place.is_relative_to(job.source)]
    return relative_media(job, *inside_source, kind="volume")


def _case(image: str) -> str:
    """Return the case of a volume path ".../ct_case/000006/Axial_non_contrast.npy": "ct_case/000006".

    The same number in ct_case and ct_quizze names two patients.
    """
    return "/".join(Path(image).parts[-3:-1])


def run_vqa(job: Job) -> Rows:
    """Yield the records of the M3D_VQA tables."""
    tables = {
        "train": job.find("M3D_VQA_train.csv"),
        "validation": job.find("M3D_VQA_val.csv"),
        "test": job.find("M3D_VQA_test.csv"),
        "test5k": job.find("M3D_VQA_test5k.csv"),
        "train_yn": job.find("M3D_VQA_yn_train.csv"),
    }
    if not any(tables.values()):
        raise DataError(f"{job.source} holds no M3D_VQA_*.csv. {M3D_VQA.layout}")
    job.report.note(NOT_HU)
    job.report.note(SPLIT_NOTE)
    for split, files in tables.items():
        for file in files[:1]:
            for number, row in enumerate(job.rows(file, _COLUMNS)):
                yield from ((split, record) for record in _questions(job, file.parent, split, number, row))


def _questions(job: Job, root: Path, split: str, number: int, row: dict[str, str]) -> Iterator[Record]:
    identifier = f"m3d-vqa-{split}-{number}"
    if not row["Question"] or not row["Answer"]:
        job.report.fault("empty question or answer", identifier)
        return
    path = _volume(job, root, row["Image Path"])
    if path is None:
        return
    facts: dict[str, Any] = {
        "volume": path,
        "evaluation": not split.startswith("train"),
        "patient": _case(row["Image Path"]),
        "question_type": QUESTION_TYPES.get(row["Question Type"], row["Question Type"]),
    }
    choices = [(letter, row.get(f"Choice {letter}", "")) for letter in "ABCD"]
    letter = row.get("Answer Choice", "")
    if job.options.form in ("both", "closed") and letter and all(text for _, text in choices):
        listed = " ".join(f"{key}. {text}" for key, text in choices)
        question = f"{row['Question']} Choices: {listed}"
        yield qa_record(f"{identifier}-closed", question, f"{letter}. {row['Answer']}", task="choice", **facts)
    if job.options.form in ("both", "open") or not letter:
        yield qa_record(f"{identifier}-open", row["Question"], row["Answer"], task="vqa", answer_type="OPEN", **facts)


M3D_CAP = DATASETS.add(
    "m3d-cap",
    Converter(
        name="m3d-cap",
        title="M3D-Cap (Bai et al., 2024)",
        license="From Radiopaedia: non-commercial use; the card says Apache-2.0 for the release. Check before use.",
        homepage="https://huggingface.co/datasets/GoodBaiBai88/M3D-Cap",
        layout="M3D_Cap.json and M3D_Cap_npy/ct_case/<case>/<series>.npy with the texts, as M3D's script "
        "writes them; or the downloaded M3D_Cap/ct_case/<case>/{text.txt, <series>/<slice>.jpeg}.",
        run=run_cap,
        options=CapOptions,
    ),
)
M3D_VQA = DATASETS.add(
    "m3d-vqa",
    Converter(
        name="m3d-vqa",
        title="M3D-VQA (Bai et al., 2024)",
        license="From Radiopaedia: non-commercial use; the card says Apache-2.0 for the release. Check before use.",
        homepage="https://huggingface.co/datasets/GoodBaiBai88/M3D-VQA",
        layout="M3D_VQA_{train,val,test,test5k}.csv and the volumes of M3D-Cap (M3D_Cap_npy/).",
        run=run_vqa,
        options=VqaOptions,
    ),
)
