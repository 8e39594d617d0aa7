"""LLaVA-style JSON: the LLaVA pretraining set (558k) and LLaVA-Med's instruction files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from medmvl.data.converters.converter import DATASETS, Converter, Job, Options, Record, Rows
from medmvl.data.converters.media import relative_media
from medmvl.data.sample import IMAGE_PLACEHOLDER
from medmvl.data.tables import iter_json_array
from medmvl.errors import DataError
from medmvl.files import iter_jsonl

PRETRAIN_FILE = "blip_laion_cc_sbu_558k.json"
#: in order of preference; the smaller ones are parts of the larger
INSTRUCT_FILES = (
    "llava_med_instruct_60k_inline_mention.json",
    "llava_med_instruct_60k.json",
    "llava_med_instruct_10k.json",
    "llava_med_alignment_500k.json",
)
EVAL_FILE = "llava_med_eval_qa50_qa.jsonl"
_PLACEHOLDER = re.compile(r"\s*<image>\s*")


class LlavaOptions(Options):
    """Settings of the two LLaVA-style converters."""

    file: str | None = Field(None, description="the JSON file to convert, if not the usual one")
    images: str | None = Field(
        None, description="folder of the images below the source, if it is not found automatically"
    )


def run_pretrain(job: Job) -> Rows:
    """Yield the records of the pretraining set."""
    file = _choose(job, (PRETRAIN_FILE,))
    for item in iter_json_array(file):
        record = _record(job, file.parent, item)
        if record is not None:
            yield "train", record | {"task": "caption"}


def run_instruct(job: Job) -> Rows:
    """Yield the records of one instruction file, and of the 50-image evaluation if it is there."""
    file = _choose(job, INSTRUCT_FILES)
    others = [name for name in INSTRUCT_FILES if name != file.name and (file.parent / name).is_file()]
    if others:
        job.report.note(f"{file.name} was converted; also there, and overlapping with it: {', '.join(others)}.")
    for item in iter_json_array(file):
        record = _record(job, file.parent, item)
        if record is not None:
            yield "train", record | {"task": "instruct"} | _domain(item)
    if (file.parent / EVAL_FILE).is_file():
        yield from (("eval", record) for record in _evaluation(job, file.parent))


def _choose(job: Job, names: tuple[str, ...]) -> Path:
    """Return the JSON file to convert."""
    if job.file is not None:
        return job.file
    wanted = (job.options.file,) if job.options.file else names
    for folder in (job.source, job.source / "data", job.source / "instruct", job.source / "alignment"):
        for name in wanted:
            if (folder / name).is_file():
                return folder / name
    others = sorted(job.source.glob("*.json"))
    if len(others) == 1 and not job.options.file:
        job.report.note(f"{others[0].name} is not a published file name; it was converted as the only JSON file there.")
        return others[0]
    raise DataError(f"{job.source} holds none of: {', '.join(wanted)}. Name the file with --set file=NAME.")


def _record(job: Job, folder: Path, item: Any) -> Record | None:
    """Return a checked record, or None after counting the item as faulty."""
    name = str(item.get("id", item.get("image", "?"))) if isinstance(item, dict) else str(item)[:60]
    turns = _turns(item)
    if not turns:
        job.report.fault("item without alternating, non-empty turns", name)
        return None
    images = item["image"] if isinstance(item["image"], list) else [item["image"]]
    paths = [_image_path(job, folder, str(image)) for image in images if image]
    if None in paths:
        return None
    record: Record = {"id": name, "conversations": turns}
    if paths:
        _place_images(turns, len(paths))
        record["image"] = paths
    else:
        for turn in turns:
            turn["value"] = _PLACEHOLDER.sub("\n", turn["value"]).strip()
    if "answer_type" in item:
        record["answer_type"] = item["answer_type"]
    return record


def _turns(item: Any) -> list[dict[str, str]]:
    """Return the turns if human and gpt alternate, else []. Both spellings of the key are read."""
    if not isinstance(item, dict):
        return []
    item.setdefault("image", None)
    speeches = item.get("conversations") or item.get("conversatons") or []
    turns = [{"from": str(s.get("from")), "value": str(s.get("value") or "").strip()} for s in speeches]
    expected = [("human", "gpt")[i % 2] for i in range(len(turns))]
    complete = len(turns) % 2 == 0 and [turn["from"] for turn in turns] == expected
    return turns if turns and complete and all(turn["value"] for turn in turns) else []


def _place_images(turns: list[dict[str, str]], count: int) -> None:
    """Keep as many placeholders as images: where the first question has them, else in front of that question."""
    first, rest = turns[0], turns[1:]
    if count > 1 and sum(turn["value"].count(IMAGE_PLACEHOLDER) for turn in turns[::2]) == count:
        rest = turns[1::2]  # later questions may show images of their own
    for turn in rest:
        turn["value"] = _PLACEHOLDER.sub("\n", turn["value"]).strip()
    if sum(turn["value"].count(IMAGE_PLACEHOLDER) for turn in turns) != count:
        first["value"] = f"{IMAGE_PLACEHOLDER}\n" * count + _PLACEHOLDER.sub("\n", first["value"]).strip()


def _image_path(job: Job, folder: Path, name: str) -> str | None:
    candidates = [job.source / job.options.images / name] if job.options.images else []
    candidates += [base / name for base in (folder / "images", job.source / "images", folder, job.source)]
    return relative_media(job, *candidates)


def _domain(item: dict[str, Any]) -> dict[str, Any]:
    """Return LLaVA-Med's domain flags, and the modality they name."""
    domain = item.get("domain")
    if not isinstance(domain, dict):
        return {}
    names = [name for name, is_it in domain.items() if is_it]
    return {"domain": domain} | ({"modality": names[0]} if names else {})


def _evaluation(job: Job, folder: Path) -> Iterator[Record]:
    for row in iter_jsonl(folder / EVAL_FILE):
        name = str(row.get("question_id", row.get("id", "?")))
        question = _PLACEHOLDER.sub("\n", str(row.get("text") or row.get("question") or "")).strip()
        answer = str(row.get("gpt4_answer") or row.get("answer") or "").strip()
        if not question or not answer:
            job.report.fault("empty question or answer", name)
            continue
        path = _image_path(job, folder, str(row.get("image", "")))
        if path is None:
            continue
        turn = {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{question}"}
        facts = {"task": "instruct", "question_type": row.get("type"), "patient": str(row.get("pair_id", name))}
        yield {"id": f"eval-{name}", "conversations": [turn], "image": [path], "answer": answer} | facts | _domain(row)


DATASETS.add(
    "llava-pretrain",
    Converter(
        name="llava-pretrain",
        title="LLaVA visual instruct pretraining set, 558k (Liu et al., 2023)",
        license="Research use; the images (LAION, CC, SBU) are under their own terms.",
        homepage="https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain",
        layout=f"{PRETRAIN_FILE} and the unpacked images (00000/ ... 00659/), next to it or in images/.",
        run=run_pretrain,
        options=LlavaOptions,
    ),
)
DATASETS.add(
    "llava-med",
    Converter(
        name="llava-med",
        title="LLaVA-Med instruction data (Li et al., 2023)",
        license="CC BY-NC 4.0, research use only.",
        homepage="https://github.com/microsoft/LLaVA-Med (llava_med_image_urls.jsonl names the PMC images)",
        layout="llava_med_instruct_*.json and images/<pair_id>.jpg.",
        run=run_instruct,
        options=LlavaOptions,
    ),
)
