"""Records about phantoms that no converter makes: described patients, captions, closed questions.

A pretrained LLM answers questions about a text, and a pretrained encoder has seen captioned pictures. Models that start from random
weights learn both from these records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.data.converters.boxtext import IDENTIFY, REFER, box_text
from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_PLACEHOLDER
from medmvl.files import iter_jsonl, write_jsonl
from medmvl.phantoms import FINDINGS, Phantom, ct_rate, draw_patient, slake
from medmvl.phantoms.texts import ON_RADIOGRAPH, Question, caption, choices, sentence, where, which_side

#: Patients with this number and above are described, not drawn, so none of them is in a test split.
_DESCRIBED_FROM = 1_000_000

_CLOSED_ANSWERS = ("yes", "no", "left", "right", "是", "否")

#: A finding list is described as on a radiograph or as on a CT.
_NAMES = {"radiograph": ON_RADIOGRAPH, "ct": tuple(FINDINGS)}

#: Side of the radiographs whose boxes are described, in pixels.
_RADIOGRAPH = 96

_DESCRIBE = "Describe."

#: Ways to ask for all that is seen.
_DESCRIPTIONS = (
    _DESCRIBE,
    "Describe the image.",
    "What do you see?",
    "Describe what you see.",
    "What are the findings?",
    "List the findings.",
)

#: A dialog about sides that is shorter gets choices as well: a patient may have no finding with a side.
_FEW_TURNS = 4

_Turns = list[tuple[str, str]]


def write_text_only_patients(path: Path, seed: int, count: int) -> None:
    """Write `count` conversations about described patients."""
    write_jsonl(path, (described_patient(seed, number) for number in range(count)))


def described_patient(seed: int, number: int, kind: str | None = None) -> dict[str, Any]:
    """Return a conversation about a patient in words: a description, then questions of one kind about it.

    Args:
        seed: of the cohort.
        number: of the patient, from 0; no model sees a picture of one.
        kind: radiograph, ct, sides, choices, boxes, caption, report or long; default: drawn by their shares.
    """
    index = _DESCRIBED_FROM + number
    rng = np.random.default_rng([seed, index])
    phantom = draw_patient(seed, index, radiograph_size=_RADIOGRAPH)
    kinds = list(_DIALOGS)
    shares = np.array([_DIALOGS[name][0] for name in kinds])
    drawn = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
    kind = kind or drawn  # which was drawn in any case, so that the other draws stay the same
    description, turns = _DIALOGS[kind][1](phantom, rng)
    first, *others = turns
    conversations = []
    for question, answer in [(f"{description}\n{first[0]}", first[1]), *others]:
        conversations += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": f"text-only-{index}", "conversations": conversations, "task": kind}


def _description(phantom: Phantom, names: Sequence[str], rng: np.random.Generator) -> str:
    """Return the findings in random order, as a caption or in sentences: each is known by its name, not by its place."""
    order = [names[i] for i in rng.permutation(len(names))]
    if rng.random() < 0.6:
        return caption(phantom.findings, order)
    return " ".join(sentence(name, phantom.findings.get(name), rng) for name in order)


def _about_radiograph(phantom: Phantom, rng: np.random.Generator) -> tuple[str, _Turns]:
    return _description(phantom, ON_RADIOGRAPH, rng), _shuffled(slake.questions(phantom), rng)


def _about_ct(phantom: Phantom, rng: np.random.Generator) -> tuple[str, _Turns]:
    return _description(phantom, tuple(FINDINGS), rng), _shuffled(ct_rate.questions(phantom)["short_answer"], rng)


def _sides(phantom: Phantom, rng: np.random.Generator) -> tuple[str, _Turns]:
    """Return a description, and questions about side and place of every finding that has one; none is yes-or-no."""
    names = list(_NAMES.values())[int(rng.integers(2))]
    asked = [*which_side(phantom.findings, names, rng), *where(phantom.findings, names, rng)]
    asked += choices(phantom.findings, names, rng) if len(asked) < _FEW_TURNS else []
    return _description(phantom, names, rng), _shuffled(asked, rng)


def _choices(phantom: Phantom, rng: np.random.Generator) -> tuple[str, _Turns]:
    return _description(phantom, tuple(FINDINGS), rng), _shuffled(ct_rate.questions(phantom)["multiple_choice"], rng)


def _report(phantom: Phantom, rng: np.random.Generator) -> tuple[str, _Turns]:
    return _description(phantom, tuple(FINDINGS), rng), _shuffled(ct_rate.questions(phantom)["report_generation"], rng)


def _long(phantom: Phantom, rng: np.random.Generator) -> tuple[str, _Turns]:
    return _description(phantom, tuple(FINDINGS), rng), _shuffled(ct_rate.questions(phantom)["long_answer"], rng)


def _caption(phantom: Phantom, rng: np.random.Generator) -> tuple[str, _Turns]:
    names = list(_NAMES.values())[int(rng.integers(2))]
    return _description(phantom, names, rng), [(_DESCRIBE, caption(phantom.findings, names))]


def _boxes(phantom: Phantom, rng: np.random.Generator) -> tuple[str, _Turns]:
    """Return a list of the boxes on the radiograph, then a question about each: its place, or what is there."""
    shown = {slake.BOX_NAMES[name]: box for name, box in phantom.boxes.items() if name in slake.BOX_NAMES}
    texts = {name: box_text(box, (_RADIOGRAPH, _RADIOGRAPH)) for name, box in shown.items()}
    names = list(texts)
    described = " ".join(f"{names[i]}: {texts[names[i]]}." for i in rng.permutation(len(names)))
    turns = []
    for name in (names[i] for i in rng.permutation(len(names))):
        if rng.random() < 0.75:
            turns.append((REFER[int(rng.integers(len(REFER)))].format(object=name), texts[name]))
        else:
            turns.append((IDENTIFY[int(rng.integers(len(IDENTIFY)))].format(box=texts[name]), name))
    return described, turns


_Dialog = Callable[[Phantom, np.random.Generator], tuple[str, _Turns]]

#: Kinds of dialogs with their shares.
_DIALOGS: dict[str, tuple[float, _Dialog]] = {
    "radiograph": (0.25, _about_radiograph),
    "ct": (0.25, _about_ct),
    "choices": (0.2, _choices),
    "report": (0.08, _report),
    "long": (0.05, _long),
    "caption": (0.05, _caption),
    "boxes": (0.12, _boxes),
    "sides": (0.0, _sides),
}


def _shuffled(questions: Sequence[Question], rng: np.random.Generator) -> _Turns:
    return [(questions[i].text, questions[i].answer) for i in rng.permutation(len(questions))]


def write_captions(folder: Path, phantoms: Sequence[Phantom], radiographs: Path, scans: Path) -> None:
    """Write every drawn training patient with its caption: on one request to pretrain on, and on many to answer later.

    The files are `radiograph-captions.jsonl` and `ct-captions.jsonl`, `radiograph-described.jsonl` and `ct-described.jsonl`.

    Args:
        folder: where the files go.
        phantoms: the training patients, in the order in which they were written.
        radiographs, scans: converted training records, which name the pictures.
    """
    for kind, records, key in (("radiograph", radiographs, "image"), ("ct", scans, "image3d")):
        pictures = list(dict.fromkeys(_media(records, key)))
        for name, requests in (("captions", (_DESCRIBE,)), ("described", _DESCRIPTIONS)):
            rows = (
                _caption_row(kind, phantom, key, path, requests[phantom.index // 2 % len(requests)])
                for phantom, path in zip(phantoms, pictures, strict=True)
            )
            write_jsonl(folder / f"{kind}-{name}.jsonl", rows)


def _caption_row(kind: str, phantom: Phantom, key: str, path: str, request: str) -> dict[str, Any]:
    placeholder = IMAGE_PLACEHOLDER if key == "image" else VOLUME_PLACEHOLDER
    conversations = [
        {"from": "human", "value": f"{placeholder}\n{request}"},
        {"from": "gpt", "value": caption(phantom.findings, _NAMES[kind])},
    ]
    return {"id": f"{kind}-{phantom.patient}", "conversations": conversations, key: [path]}


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
