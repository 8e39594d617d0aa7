"""Scored answers (`Item`) and reading them from a predictions file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmvl.data.record import IMAGE_KEYS, VOLUME_KEYS, media_paths, parse_messages
from medmvl.errors import DataError, EvaluationError
from medmvl.evaluation.answer_types import is_known_answer_type
from medmvl.evaluation.scripts import is_chinese, is_mostly_latin, spaced_words
from medmvl.files import existing_file, iter_jsonl, read_json

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
        record: the whole row, for metrics that need more than the texts (boxes, labels, types).
        chinese: whether question and answer are in Chinese.
        images: paths of its images, as written.
        volumes: paths of its volumes, as written.
    """

    id: str
    question: str
    reference: str
    prediction: str
    patient: str
    record: Mapping[str, Any] = field(default_factory=dict)
    chinese: bool = False
    images: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()

    @property
    def other_script(self) -> bool:
        """Whether the item is in Chinese, or its reference is mostly in letters that are not Latin."""
        return self.chinese or not is_mostly_latin(self.reference)

    @property
    def language(self) -> str:
        """ "zh" or "en"."""
        return "zh" if self.chinese else "en"

    @property
    def hypothesis(self) -> str:
        """The prediction as the word metrics read it: with spaces between words in any script."""
        return spaced_words(self.prediction) if self.other_script else self.prediction

    @property
    def target(self) -> str:
        """The reference as the word metrics read it: with spaces between words in any script."""
        return spaced_words(self.reference) if self.other_script else self.reference


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


def conversation_and_answer(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return the last question and the reference answer of a record; "" where there is none.

    An explicit `answer` replaces the last assistant turn. A record without a conversation may give `question` and `answer`.

    Raises:
        DataError: if the conversation is not as the record format says.
    """
    question, answer = str(record.get("question") or ""), ""
    if record.get("conversations") or record.get("messages"):
        messages, _ = parse_messages(record)
        question = next((turn.text for turn in reversed(messages) if turn.role == "user"), "")
        answer = messages[-1].text if messages[-1].role == "assistant" else ""
    explicit = record.get("answer")
    return question, str(answer if explicit is None else explicit)


def _paths(record: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return the media paths of a record; a value that is no path gives none, since scoring needs no picture."""
    try:
        return media_paths(record, keys)
    except DataError:
        return ()


def make_item(record: Mapping[str, Any]) -> Item:
    """Make an Item of a predictions row that has an `id` and a `prediction`.

    The language is the record's `language` or `q_lang`. Without one, a reference with Chinese characters and no kana is Chinese.
    """
    question, reference = conversation_and_answer(record)
    language = str(record.get("language") or record.get("q_lang") or "").lower()
    chinese = language.startswith("zh") if language else is_chinese(reference)
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
        images=_paths(record, IMAGE_KEYS),
        volumes=_paths(record, VOLUME_KEYS),
    )


def read_items(
    path: Path,
    *,
    strict: bool = False,
    keys: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[list[Item], Faults]:
    """Read a predictions file (JSON Lines or a JSON array) into items, in the file's order.

    A line that is not JSON (cut off by a kill or a download), a row without an id, without a text under `prediction`, or
    with an id that was seen before, or without a reference to score it by is a fault: it is counted and named, and with
    `strict` it stops the reading.

    Args:
        path: the file.
        strict: raise at the first fault.
        keys: our key -> key in the file, where another tool names them differently.
        defaults: values for keys that a row lacks.

    Raises:
        DataError: if the file is missing; with `strict`, if a line is not JSON.
        EvaluationError: if no row can be scored; with `strict`, at the first fault.
    """
    items: list[Item] = []
    faults = Faults()
    seen: set[str] = set()
    broken = None if strict else lambda number: faults.add("not JSON", f"line {number}")
    for number, given in enumerate(_rows(path, broken), start=1):
        row = _renamed(given, keys or {}, defaults or {})
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


def _rows(path: Path, on_broken: Callable[[int], None] | None) -> Iterator[Any]:
    """Yield the rows of a JSON Lines file or a JSON array."""
    with existing_file(path, "predictions file").open("rb") as handle:
        is_array = handle.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if is_array:
        yield from read_json(path)
    else:
        yield from iter_jsonl(path, on_broken)


def _renamed(row: Any, keys: Mapping[str, str], defaults: Mapping[str, Any]) -> Any:
    """Return a row with our keys filled from the keys of another tool, and defaults for keys that it lacks."""
    if not isinstance(row, dict):
        return row
    named = {ours: row[theirs] for ours, theirs in keys.items() if theirs in row}
    return {**defaults, **row, **named}


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
    if not isinstance(row.get("labels") or {}, dict):
        return "labels are no object of findings", str(row["id"])
    try:
        answerable = has_reference(row)
    except DataError:
        return "conversation cannot be read", str(row["id"])
    if not is_known_answer_type(row):
        return "answer_type is neither closed nor open", str(row["id"])
    if not answerable:
        return "no reference answer", str(row["id"])
    return "", ""


def has_reference(record: Mapping[str, Any]) -> bool:
    """Return whether a record holds what an answer can be scored by: a reference text, boxes or labels."""
    return bool(conversation_and_answer(record)[1].strip() or record.get("boxes") or record.get("labels"))


def group_by_patient(items: Sequence[Item]) -> dict[str, list[int]]:
    """Return the positions of the items of each patient; patients sorted by name, the items of one by id.

    Sorting makes every sum and every interval independent of the order of the rows, to the last digit.
    """
    groups: dict[str, list[int]] = {}
    for position in sorted(range(len(items)), key=lambda position: items[position].id):
        groups.setdefault(items[position].patient, []).append(position)
    return dict(sorted(groups.items()))
