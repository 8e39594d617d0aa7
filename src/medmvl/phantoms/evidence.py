"""Phantoms with which evidence and calibration are measured: findings with their boxes, and the same patients without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER
from medmvl.data.synthetic import write_note
from medmvl.files import PathLike, atomic, write_jsonl
from medmvl.phantoms import texts
from medmvl.phantoms.ct_rate import save_nifti
from medmvl.phantoms.findings import FINDINGS
from medmvl.phantoms.phantom import Phantom

RECORDS = "evidence.jsonl"

#: First pixel and end, along the axes of a picture.
Box = list[list[int]]


def write_evidence(root: PathLike, phantoms: Iterable[Phantom]) -> Path:
    """Write a question about every finding of some patients below `root`, radiograph and CT; return the records' path.

    A record asks whether the finding is there (it is) and holds `finding` and `evidence`: `box`, first pixel and end along the
    axes of the picture (rows, columns; of a CT slices, rows, columns of the axial view), and `erased`, a picture of
    the same patient without the finding. Emphysema is in the whole lungs and has no box.
    """
    root = Path(root)
    write_jsonl(root / RECORDS, _rows(root, phantoms, _evidence_rows))
    write_note(root, "evidence records")
    return root / RECORDS


def write_closed_questions(root: PathLike, splits: Mapping[str, Iterable[Phantom]]) -> Path:
    """Write the yes-or-no questions about radiograph and CT of each patient as `root`/SPLIT.jsonl; return `root`."""
    root = Path(root)
    for split, phantoms in splits.items():
        write_jsonl(root / f"{split}.jsonl", _rows(root, phantoms, _closed_rows))
    write_note(root, "closed questions")
    return root


def _rows(
    root: Path, phantoms: Iterable[Phantom], of_patient: Callable[[Path, Phantom, _Shown], Iterator[dict[str, Any]]]
) -> list[dict[str, Any]]:
    return [row for phantom in phantoms for shown in _SHOWN for row in of_patient(root, phantom, shown)]


def _evidence_rows(root: Path, phantom: Phantom, shown: _Shown) -> Iterator[dict[str, Any]]:
    names = [name for name in shown.asked if name in phantom.findings]
    for finding, row in _questions(root, phantom, shown, names):
        found: dict[str, Any] = {"erased": shown.save(root, phantom.without(finding))}
        box = shown.box(phantom, finding)
        yield {**row, "evidence": found if box is None else {**found, "box": box}}


def _closed_rows(root: Path, phantom: Phantom, shown: _Shown) -> Iterator[dict[str, Any]]:
    return (row for _, row in _questions(root, phantom, shown, shown.asked))


def _questions(
    root: Path, phantom: Phantom, shown: _Shown, names: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (finding, record) of the yes-or-no question about each of `names`."""
    path = shown.save(root, phantom)
    for question in texts.yes_no(phantom.findings, names, shown.word, phantom.text_rng()):
        assert question.finding is not None
        yield (
            question.finding,
            {
                "id": f"{phantom.patient}-{shown.kind}-{question.finding}".replace(" ", "-"),
                "patient": phantom.patient,
                shown.key: [path],
                "conversations": [{"from": "human", "value": f"{shown.placeholder}\n{question.text}"}],
                "answer": question.answer,
                "answer_type": "CLOSED",
                "task": "vqa",
                "modality": shown.modality,
                "finding": question.finding,
                "synthetic": True,
            },
        )


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


def _box_on_radiograph(phantom: Phantom, finding: str) -> Box | None:
    if finding not in phantom.boxes:
        return None
    x, y, width, height = phantom.boxes[finding]
    return [[y, x], [y + height, x + width]]


def _box_in_scan(phantom: Phantom, finding: str) -> Box | None:
    box = phantom.scan_boxes.get(finding)
    return None if box is None else [list(corner) for corner in box]


@dataclass(frozen=True)
class _Shown:
    """A kind of picture: its words and keys in records, what is asked about it, and how it is saved.

    Attributes:
        save: writes the picture of a patient below a folder and returns its path there.
        box: returns first pixel and end of a finding; None if it has no place of its own.
    """

    key: str
    kind: str
    placeholder: str
    modality: str
    word: str
    asked: Sequence[str]
    save: Callable[[Path, Phantom], str]
    box: Callable[[Phantom, str], Box | None]


_SHOWN = (
    _Shown(
        "image", "radiograph", IMAGE_PLACEHOLDER, "X-Ray", "radiograph", texts.ON_RADIOGRAPH,
        _save_radiograph, _box_on_radiograph,
    ),
    _Shown("image3d", "ct", VOLUME_PLACEHOLDER, "CT", "scan", tuple(FINDINGS), _save_scan, _box_in_scan),
)  # fmt: skip
