"""Chat files of other training tools: LLaMA-Factory, ms-swift, ShareGPT and Alpaca styles, as JSON or JSON Lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from medmvl.data.converters.converter import Job, Record, Rows
from medmvl.data.converters.own_identity import Identity, IdentityFinder, Masker
from medmvl.data.converters.own_media import MediaColumn, MediaWriter, entries_of, own_title
from medmvl.data.converters.own_unnamed import note_unnamed
from medmvl.data.converters.splits import divide
from medmvl.data.formats import iter_located
from medmvl.data.record import ROLES
from medmvl.data.sample import IMAGE_PLACEHOLDER
from medmvl.progress_bar import track

CHAT_SUFFIXES = (".json", ".jsonl")
#: Keys of images in these files; ms-swift and LLaMA-Factory write `images`, LLaVA `image`.
_IMAGE_KEYS = ("images", "image")
#: Keys of what cannot be read; a record without it would mean something else.
_FOREIGN_KEYS = ("videos", "video", "audios", "audio")
#: Types of content parts that stand for an image, and the keys of their path.
_IMAGE_PARTS = ("image", "image_url")
#: Placeholders of other tools for an image.
_MARKS = re.compile(r"<\|?image_pad\|?>|<img>|<\|image\|>|<image_placeholder>")
_FURTHER_ROLES = {"observation": None, "function_call": None, "tool": None, "model": "gpt", "bot": "gpt"}
#: Returns the paths of the images of an item; None after counting a faulty one.
FindPaths = Callable[[Any], list[str] | None]
_SPEAKER = {"user": "human", "assistant": "gpt", "system": "system"}


def iter_chat(job: Job, file: Path, masker: Masker) -> Rows:
    """Yield (split, record) of every item; items that fit no known style are faults."""
    items = [(located.where, located.record) for located in iter_located(file)]
    columns = dict.fromkeys(key for _, item in items if isinstance(item, dict) for key in item)
    finder = IdentityFinder(job, columns, file.parent)
    column = MediaColumn("image")
    rows = [([(column, _images(item))], _identity(finder, item)) for _, item in track(items, "identities")]
    media = MediaWriter(job, file.parent, rows, masker)
    job.report.title = own_title(file, media.screen)
    keys = [identity.patient or where for (where, _), (_, identity) in zip(items, rows, strict=True)]
    splits = divide(keys, job.options.test_share, job.options.val_share)
    for number, ((where, item), (_, identity), key) in enumerate(
        zip(track(items, "items"), rows, keys, strict=True), start=1
    ):
        find = partial(media.paths, column=column, row=where, identity=identity)
        record = _record(job, item, where, f"{file.stem}-{number}", find)
        if record is not None:
            record = _masked(record, identity, masker)
            yield splits[key], record if splits[key] == "train" else _as_question(record)
    note_unnamed(job, media, finder)


def _identity(finder: IdentityFinder, item: Any) -> Identity:
    if not isinstance(item, dict):
        return Identity()
    files = [entry for entry in entries_of(_images(item)) if isinstance(entry, str)]
    return finder.of({key: value for key, value in item.items() if not isinstance(value, list | dict)}, files)


def _masked(record: Record, identity: Identity, masker: Masker) -> Record:
    """Return a record without the identifiers of its patient, with the patient's pseudonym."""
    turns = [turn | {"value": masker.text(turn["value"], identity)} for turn in record["conversations"]]
    patient = masker.patient(identity)
    record = record | {"id": masker.text(record["id"], identity), "conversations": turns}
    return record | {"patient": patient} if patient else record


def _images(item: Any) -> Any:
    if not isinstance(item, dict):
        return None
    found = next((item[key] for key in _IMAGE_KEYS if item.get(key)), None) or _part_images(item)
    return found["path"] if isinstance(found, dict) and isinstance(found.get("path"), str) else found


def _part_images(item: dict[str, Any]) -> list[Any]:
    """Return the images that stand in the content parts of an item's messages."""
    turns = item.get("messages") or item.get("conversations")
    found = []
    for turn in turns if isinstance(turns, list) else []:
        parts = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        for part in parts if isinstance(parts, list) else []:
            if isinstance(part, dict) and part.get("type") in _IMAGE_PARTS:
                image = next((part[key] for key in (*_IMAGE_PARTS, "path", "url") if part.get(key)), None)
                found.append(image.get("url", image) if isinstance(image, dict) else image)
    return [image for image in found if image is not None]


def _record(job: Job, item: Any, where: str, fallback: str, find: FindPaths) -> Record | None:
    turns = list(_turns(item)) if isinstance(item, dict) else []
    if isinstance(item, dict) and any(item.get(key) for key in _FOREIGN_KEYS):
        job.report.fault("video or audio, which cannot be read", where)
        return None
    if not turns or any(speaker is None for speaker, _ in turns):
        job.report.fault("no conversation in a known style", where)
        return None
    paths = find(_images(item))
    if paths is None:
        return None
    conversation = [{"from": str(speaker), "value": _MARKS.sub(IMAGE_PLACEHOLDER, text)} for speaker, text in turns]
    asked = [turn for turn in conversation if turn["from"] == "human"]
    if asked and paths and not any(IMAGE_PLACEHOLDER in turn["value"] for turn in asked):
        asked[0]["value"] = f"{IMAGE_PLACEHOLDER}\n" * len(paths) + asked[0]["value"]
    record: Record = {"id": str(item.get("id") or fallback), "conversations": conversation}
    if paths:
        record["image"] = paths
    return record | {"task": job.options.task}


def _turns(item: dict[str, Any]) -> Iterator[tuple[str | None, str]]:
    """Yield (speaker, text); an unknown speaker is None."""
    system = item.get("system")
    if isinstance(system, str) and system:
        yield "system", system
    for key, speaker_key, text_key in (("messages", "role", "content"), ("conversations", "from", "value")):
        turns = item.get(key)
        if isinstance(turns, list) and turns:
            for turn in turns:
                if not isinstance(turn, dict):
                    yield None, ""
                    return
                speaker = turn.get(speaker_key, turn.get("role", turn.get("from")))
                text = turn.get(text_key, turn.get("content", turn.get("value")))
                yield _speaker(speaker), _text(text)
            return
    history = item.get("history") or []
    for pair in history if isinstance(history, list) else [history]:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            yield None, ""
            return
        yield "human", str(pair[0])
        yield "gpt", str(pair[1])
    question = item.get("query") or item.get("instruction") or item.get("prompt") or item.get("question")
    answer = item.get("response") or item.get("output") or item.get("answer")
    if isinstance(question, str) and isinstance(answer, str):
        more = item.get("input")
        yield "human", f"{question}\n{more}" if isinstance(more, str) and more.strip() else question
        yield "gpt", answer


def _speaker(name: Any) -> str | None:
    if not isinstance(name, str):
        return None
    role = ROLES.get(name)
    return _SPEAKER[role] if role else _FURTHER_ROLES.get(name)


def _text(value: Any) -> str:
    """Return the text of a turn; content parts are joined, an image part becomes a placeholder."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else []
    return "\n".join(
        IMAGE_PLACEHOLDER if part.get("type") in _IMAGE_PARTS else str(part.get("text", ""))
        for part in parts
        if isinstance(part, dict)
    )


def _as_question(record: Record) -> Record:
    """Return an evaluation record: the last answer is the reference."""
    turns = record["conversations"]
    if turns[-1]["from"] != "gpt":
        return record
    return record | {"conversations": turns[:-1], "answer": turns[-1]["value"]}
