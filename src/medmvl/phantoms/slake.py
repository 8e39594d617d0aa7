"""Phantom radiographs in the layout of the unpacked SLAKE archive (Slake1.0)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmvl.data.synthetic import write_note
from medmvl.files import PathLike, atomic, write_json, write_text
from medmvl.phantoms import texts
from medmvl.phantoms.phantom import Phantom
from medmvl.progress_bar import track

# The names used in detection.json and mask.txt, by the names of the drawing.
BOX_NAMES = {
    "left lung": "Left Lung",
    "right lung": "Right Lung",
    "heart": "Heart",
    "trachea": "Trachea",
    "pleural effusion": "Pleural Effusion",
    "consolidation": "Consolidation",
    "lung nodule": "Nodule",
    "pacemaker": "Pacemaker",
}
_FILES = {"val": "validate", "valid": "validate", "validation": "validate"}


def questions(phantom: Phantom, *, new_wordings: bool = False) -> list[texts.Question]:
    """Return the questions asked about a radiograph, in a fixed order.

    Args:
        phantom: the patient.
        new_wordings: also use wordings that are kept for held-out patients.
    """
    rng = phantom.text_rng()
    names = texts.ON_RADIOGRAPH
    pair = phantom.pair_rng()  # opposite patients are asked in the same language: each has as many "yes" as "no"
    chinese = [name for name in names if pair.random() < texts.CHINESE_SHARE]
    return [
        *texts.yes_no(phantom.findings, names, "radiograph", rng, new_wordings=new_wordings, chinese=chinese),
        *texts.which_side(phantom.findings, names, rng),
        *texts.where(phantom.findings, names, rng),
        texts.list_abnormalities(phantom.findings, names),
        *texts.about_picture("X-Ray", "Coronal Plane"),
    ]


def write_slake(root: PathLike, splits: Mapping[str, Iterable[Phantom]]) -> Path:
    """Write `splits` (train, val, test -> phantoms) below `root` as SLAKE; return `root`.

    Files: train.json, validate.json, test.json (records in English and Chinese), train.txt ... (image folders), mask.txt,
    and imgs/xmlabN/{source.jpg, mask.png, detection.json, question.json}.
    """
    root = Path(root)
    number, question_id = 0, 0
    for split, phantoms in splits.items():
        rows: list[dict[str, Any]] = []
        folders = []
        for phantom in map(
            replace, track(phantoms, f"radiographs, {split}")
        ):  # a copy, so that its pictures go once they are written
            own = _rows(phantom, number, question_id, split)
            _write_image(root / "imgs" / f"xmlab{number}", phantom, own)
            folders.append(f"xmlab{number}")
            rows.extend(own)
            number, question_id = number + 1, question_id + len(own)
        name = _FILES.get(split, split)
        write_json(root / f"{name}.json", rows, indent=1)
        write_text(root / f"{name}.txt", "\n".join(folders) + "\n")
    write_text(root / "mask.txt", "".join(f"{i}:{name}\n" for i, name in enumerate(BOX_NAMES.values(), start=1)))
    write_note(root, "SLAKE")
    return root


def _rows(phantom: Phantom, number: int, first_id: int, split: str) -> list[dict[str, Any]]:
    return [
        {
            "img_id": number,
            "img_name": f"xmlab{number}/source.jpg",
            "question": question.text,
            "answer": question.answer,
            "q_lang": question.language,
            "location": "Lung",
            "modality": "X-Ray",
            "answer_type": "CLOSED" if question.closed else "OPEN",
            "base_type": "vqa",
            "content_type": question.content,
            "triple": ["vhead", "_", "_"],
            "qid": first_id + offset,
        }
        for offset, question in enumerate(questions(phantom, new_wordings=split != "train"))
    ]


def _write_image(folder: Path, phantom: Phantom, rows: list[dict[str, Any]]) -> None:
    radiograph = phantom.projection
    with atomic(folder / "source.jpg") as temporary:
        Image.fromarray(radiograph.pixels).save(temporary, quality=95)
    mask = np.zeros(radiograph.pixels.shape, dtype=np.uint8)
    for value, name in enumerate(BOX_NAMES, start=1):
        if name in radiograph.regions:
            mask[radiograph.regions[name]] = value
    with atomic(folder / "mask.png") as temporary:
        Image.fromarray(mask).save(temporary)
    boxes = [{shown: list(radiograph.boxes[name])} for name, shown in BOX_NAMES.items() if name in radiograph.boxes]
    write_json(folder / "detection.json", boxes, indent=None)
    write_json(folder / "question.json", rows, indent=None)
