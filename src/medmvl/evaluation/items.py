"""One scored answer, and how a predictions file becomes a list of them.

The scorers never see records: they see `Item`s, whose texts are already cut by character where the item is Chinese.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmvl.errors import EvaluationError
from medmvl.evaluation.text import has_chinese, split_characters
from medmvl.files import iter_jsonl

NAMED_FAULTS = 8  # how many ids a message or a report names before it only counts


@dataclass(frozen=True, slots=True)
class Item:
    """One question, its reference and the model's answer.

    Attributes:
        id: the record's id.
        question: the last human turn.
        reference: the reference answer as written.
        prediction: the model's answer as written.
        patient: the cluster of the bootstrap: the record's `patient`, else its id.
        record: the whole row, for what a metric needs beside the texts (boxes, labels, types).
        chinese: whether the item is scored by character.
    """

    id: str
    question: str
    reference: str
    prediction: str
    patient: str
    record: Mapping[str, Any] = field(default_factory=dict)
    chinese: bool = False

    @property
    def language(self) -> str:
        """ "zh" or "en"."""
        return "zh" if self.chinese else "en"

    @property
    def hypothesis(self) -> str:
        """The prediction as the word-level metrics read it (Chinese spaced by character)."""
        return split_characters(self.prediction) if self.chinese else self.prediction

    @property
    def target(self) -> str:
        """The reference as the word-level metrics read it (Chinese spaced by character)."""
        return split_characters(self.reference) if self.chinese else self.reference


@dataclass(slots=True)
class Faults:
    """What was wrong with a predictions file: a list of ids (or line names) per kind of fault."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, what: str) -> None:
        """Note one faulty row."""
        self.found.setdefault(kind, []).append(what)

    def total(self) -> int:
        """Return the number of faulty rows."""
        return sum(map(len, self.found.values()))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return counts and the first ids of each kind, for results.json."""
        return {kind: {"count": len(ids), "first": ids[:NAMED_FAULTS]} for kind, ids in self.found.items()}

    def describe(self) -> str:
        """Return one line for a message: each kind with its count and first ids."""
        parts = []
        for kind, ids in self.found.items():
            more = ", ..." if len(ids) > NAMED_FAULTS else ""
            parts.append(f"{kind}: {len(ids)} ({', '.join(ids[:NAMED_FAULTS])}{more})")
        return "; ".join(parts)


def question_and_answer(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return the last question and the reference answer of a record; "" for a reference that is not there.

    An explicit `answer` wins over the last assistant turn. Both spellings of a conversation are read.
    """
    question, last = "", ""
    for turn in record.get("conversations") or record.get("messages") or ():
        value = turn.get("value", turn.get("content", ""))
        text = value if isinstance(value, str) else _joined_parts(value)
        if turn.get("from", turn.get("role")) in ("human", "user"):
            question, last = text, ""
        else:
            last = text
    answer = record.get("answer")
    return question, str(last if answer is None else answer)


def _joined_parts(parts: Any) -> str:
    """Join the text parts of a chat-style message; anything else (a pixel box) is written as it is."""
    if isinstance(parts, list) and parts and all(isinstance(part, Mapping) for part in parts):
        return "".join(str(part.get("text", "")) for part in parts)
    return str(parts)


def media_paths(record: Mapping[str, Any], *keys: str) -> list[str]:
    """Return the paths that a record gives under the first of `keys` that it has; what is no path is passed over."""
    value: Any = next((record[key] for key in keys if record.get(key)), [])
    entries = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, str)]


def make_item(record: Mapping[str, Any]) -> Item:
    """Make an Item of a predictions row that has an `id` and a `prediction`.

    The language is the record's `language` or `q_lang`; without one, a reference with Chinese characters is Chinese.
    """
    question, reference = question_and_answer(record)
    language = str(record.get("language") or record.get("q_lang") or "").lower()
    chinese = language.startswith("zh") if language else has_chinese(reference)
    identifier = str(record["id"])
    patient = record.get("patient")
    return Item(
        id=identifier,
        question=question,
        reference=reference,
        prediction=str(record["prediction"]),
        patient=identifier if patient in (None, "") else str(patient),
        record=record,
        chinese=chinese,
    )


def read_items(path: Path, *, strict: bool = False) -> tuple[list[Item], Faults]:
    """Read a predictions file (JSON Lines) into items, in the file's order.

    A line that is not JSON (cut off by a kill or a download), a row without an id, without a text under `prediction`, or
    with an id that was seen before, or without a reference to score it by is a fault: it is counted and named, and with
    `strict` it stops the reading.

    Raises:
        DataError: if the file is missing; with `strict`, if a line is not JSON.
        EvaluationError: if no row can be scored; with `strict`, at the first fault.
    """
    items: list[Item] = []
    faults = Faults()
    seen: set[str] = set()
    broken = None if strict else lambda number: faults.add("not JSON", f"line {number}")
    for number, row in enumerate(iter_jsonl(path, broken), start=1):
        kind, what = _fault(row, number, seen)
        if kind:
            if strict:
                raise EvaluationError(f"{path}: {kind}: {what}. Repair the file, or leave out --strict to go on.")
            faults.add(kind, what)
            continue
        seen.add(str(row["id"]))
        items.append(make_item(row))
    if not items:
        found = f" {faults.describe()}." if faults.total() else ""
        raise EvaluationError(
            f"{path} holds no prediction that can be scored.{found} "
            'Each line needs an "id", the record\'s conversation or "answer", and a "prediction".'
        )
    return items, faults


def _fault(row: Any, number: int, seen: set[str]) -> tuple[str, str]:
    """Return (kind of fault, its name), or ("", "") for a row that can be scored."""
    if not isinstance(row, dict):
        return "not an object", f"row {number}"
    if row.get("id") in (None, ""):
        return "no id", f"row {number}"
    if not isinstance(row.get("prediction"), str):
        return "no prediction", str(row["id"])
    if str(row["id"]) in seen:
        return "id seen twice", str(row["id"])
    turns = row.get("conversations") or row.get("messages") or []
    if not (isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)):
        return "conversation is no list of turns", str(row["id"])
    if not has_reference(row):
        return "no reference answer", str(row["id"])
    return "", ""


def has_reference(record: Mapping[str, Any]) -> bool:
    """Return whether a record holds what an answer can be scored by: a reference text, boxes or labels."""
    return bool(question_and_answer(record)[1].strip() or record.get("boxes") or record.get("labels"))


def group_by_patient(items: Sequence[Item]) -> dict[str, list[int]]:
    """Return the positions of the items of each patient; patients sorted by name, the items of one by id.

    Sorting makes every sum and every interval independent of the order of the rows, to the last digit.
    """
    groups: dict[str, list[int]] = {}
    for position in sorted(range(len(items)), key=lambda position: items[position].id):
        groups.setdefault(items[position].patient, []).append(position)
    return dict(sorted(groups.items()))
