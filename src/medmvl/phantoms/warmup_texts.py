"""Warm-up data: texts about patients, captions, and closed questions.

A pretrained LLM answers questions about a text, and a pretrained encoder has seen captioned pictures. A recipe that starts
from random weights (the quickstart, the phantom comparison) lets its model learn both first, from the same phantoms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER
from medmvl.files import iter_jsonl, write_jsonl
from medmvl.phantoms import FINDINGS, Phantom, ct_rate, draw_patient, slake
from medmvl.phantoms.texts import ON_RADIOGRAPH, caption

#: Patients with this number and above are described, not drawn, so none of them is in a test split.
_DESCRIBED_FROM = 1_000_000

_CLOSED_ANSWERS = ("yes", "no", "left", "right")

#: A finding list is described as on a radiograph or as on a CT.
_NAMES = {"radiograph": ON_RADIOGRAPH, "ct": tuple(FINDINGS)}


def write_text_only_patients(path: Path, seed: int, count: int) -> None:
    """Write `count` conversations about a described patient: the caption as text, then questions about it."""
    write_jsonl(path, (_reading(draw_patient(seed, _DESCRIBED_FROM + number)) for number in range(count)))


def _reading(phantom: Phantom) -> dict[str, Any]:
    kind = "radiograph" if phantom.index % 2 else "ct"
    if kind == "radiograph":
        questions = [question for question in slake.questions(phantom) if question.language == "en"]
    else:
        questions = list(ct_rate.questions(phantom)["short_answer"])
    np.random.default_rng([phantom.seed, phantom.index]).shuffle(questions)
    turns = []
    for question in questions:
        turns += [{"from": "human", "value": question.text}, {"from": "gpt", "value": question.answer}]
    turns[0]["value"] = f"{caption(phantom.findings, _NAMES[kind])}\n{turns[0]['value']}"
    return {"id": f"text-only-{phantom.index}", "conversations": turns}


def write_captions(folder: Path, phantoms: Sequence[Phantom], radiographs: Path, scans: Path) -> None:
    """Write `radiograph-captions.jsonl` and `ct-captions.jsonl`: every drawn training patient with its caption.

    Args:
        folder: where the files go.
        phantoms: the training patients, in the order in which they were written.
        radiographs, scans: converted training records, which name the pictures.
    """
    for kind, records, key, placeholder in (
        ("radiograph", radiographs, "image", IMAGE_PLACEHOLDER),
        ("ct", scans, "image3d", VOLUME_PLACEHOLDER),
    ):
        rows = [
            {
                "id": f"{kind}-{phantom.patient}",
                "conversations": [
                    {"from": "human", "value": f"{placeholder}\nDescribe."},
                    {"from": "gpt", "value": caption(phantom.findings, _NAMES[kind])},
                ],
                key: [path],
            }
            for phantom, path in zip(phantoms, dict.fromkeys(_media(records, key)), strict=True)
        ]
        write_jsonl(folder / f"{kind}-captions.jsonl", rows)


def write_closed(records: Path, path: Path) -> None:
    """Write the closed questions of multi-turn `records` to `path`; short answers train the visual path fastest."""
    write_jsonl(path, (closed for row in iter_jsonl(records) if (closed := _closed_part(row)) is not None))


def _closed_part(row: dict[str, Any]) -> dict[str, Any] | None:
    turns = row["conversations"]
    placeholder = f"{IMAGE_PLACEHOLDER if 'image' in row else VOLUME_PLACEHOLDER}\n"
    pairs = [pair for pair in zip(turns[::2], turns[1::2], strict=True) if pair[1]["value"].lower() in _CLOSED_ANSWERS]
    kept = [dict(turn) for pair in pairs for turn in pair]
    if not kept:
        return None
    kept[0]["value"] = placeholder + kept[0]["value"].removeprefix(placeholder)
    return {**row, "conversations": kept}


def _media(records: Path, key: str) -> Iterator[str]:
    return (row[key][0] for row in iter_jsonl(records))
