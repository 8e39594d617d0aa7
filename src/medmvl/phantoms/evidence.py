"""Phantoms with which evidence and calibration are measured: findings with their boxes, and the same patients without them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER
from medmvl.data.synthetic import write_note
from medmvl.files import PathLike, atomic, write_jsonl
from medmvl.phantoms import texts
from medmvl.phantoms.ct_rate import save_nifti
from medmvl.phantoms.phantom import Phantom

RECORDS = "evidence.jsonl"


def write_evidence(root: PathLike, phantoms: Iterable[Phantom]) -> Path:
    """Write a question about every finding of some patients below `root`, radiograph and CT; return the records' path.

    A record asks whether the finding is there (it is) and holds `finding` and `evidence`: `box`, first pixel and end along the
    axes of the picture (rows, columns; of a CT slices, rows, columns of the axial view), and `erased`, a picture of
    the same patient without the finding. Emphysema is in the whole lungs and has no box.
    """
    root = Path(root)
    rows = [row for phantom in phantoms for row in (*_radiograph_rows(root, phantom), *_scan_rows(root, phantom))]
    write_jsonl(root / RECORDS, rows)
    write_note(root, "evidence records")
    return root / RECORDS


def write_closed_questions(root: PathLike, splits: Mapping[str, Iterable[Phantom]]) -> Path:
    """Write the yes-or-no questions about radiograph and CT of each patient as `root`/SPLIT.jsonl; return `root`."""
    root = Path(root)
    for split, phantoms in splits.items():
        write_jsonl(root / f"{split}.jsonl", [row for phantom in phantoms for row in _closed_rows(root, phantom)])
    write_note(root, "closed questions")
    return root


def _radiograph_rows(root: Path, phantom: Phantom) -> Iterator[dict[str, Any]]:
    names = [name for name in texts.ASKED_ON_RADIOGRAPH if name in phantom.findings]
    picture = _save_radiograph(root, phantom)
    for question in texts.yes_no(phantom.findings, names, "radiograph", phantom.text_rng()):
        assert question.finding is not None
        found: dict[str, Any] = {"erased": _save_radiograph(root, phantom.without(question.finding))}
        if question.finding in phantom.boxes:
            x, y, width, height = phantom.boxes[question.finding]
            found["box"] = [[y, x], [y + height, x + width]]
        yield {**_record("image", picture, question, phantom), "evidence": found}


def _scan_rows(root: Path, phantom: Phantom) -> Iterator[dict[str, Any]]:
    names = [name for name in texts.ASKED_ON_CT if name in phantom.findings]
    volume = _save_scan(root, phantom)
    for question in texts.yes_no(phantom.findings, names, "scan", phantom.text_rng()):
        assert question.finding is not None
        found: dict[str, Any] = {"erased": _save_scan(root, phantom.without(question.finding))}
        if question.finding in phantom.scan_boxes:
            found["box"] = [list(corner) for corner in phantom.scan_boxes[question.finding]]
        yield {**_record("image3d", volume, question, phantom), "evidence": found}


def _closed_rows(root: Path, phantom: Phantom) -> Iterator[dict[str, Any]]:
    for key, names, word, save in (
        ("image", texts.ASKED_ON_RADIOGRAPH, "radiograph", _save_radiograph),
        ("image3d", texts.ASKED_ON_CT, "scan", _save_scan),
    ):
        path = save(root, phantom)
        for question in texts.yes_no(phantom.findings, names, word, phantom.text_rng()):
            yield _record(key, path, question, phantom)


def _record(key: str, path: str, question: texts.Question, phantom: Phantom) -> dict[str, Any]:
    kind, placeholder = ("radiograph", IMAGE_PLACEHOLDER) if key == "image" else ("ct", VOLUME_PLACEHOLDER)
    return {
        "id": f"{phantom.patient}-{kind}-{question.finding}".replace(" ", "-"),
        "patient": phantom.patient,
        key: [path],
        "conversations": [{"from": "human", "value": f"{placeholder}\n{question.text}"}],
        "answer": question.answer,
        "answer_type": "CLOSED",
        "task": "vqa",
        "modality": "X-Ray" if key == "image" else "CT",
        "finding": question.finding,
        "synthetic": True,
    }


def _name(phantom: Phantom) -> str:
    return "-without-".join([phantom.patient, *phantom.erased]).replace(" ", "-")


def _save_radiograph(root: Path, phantom: Phantom) -> str:
    path = f"radiographs/{_name(phantom)}.png"
    with atomic(root / path) as temporary:
        Image.fromarray(phantom.radiograph).save(temporary, format="PNG")
    return path


def _save_scan(root: Path, phantom: Phantom) -> str:
    path = f"scans/{_name(phantom)}.nii.gz"
    save_nifti(root / path, phantom)
    return path
