"""Records on disk: how a row becomes a `Sample` and back, in JSON, JSON Lines and Parquet.

A record is `{"id", "conversations": [{"from", "value"}], "image": [...], "image3d": [...], "answer"}`; chat-style
`messages` (role and content parts) may stand for `conversations`, `volume` for `image3d`, a plain string for a list
of one path. What is not one of these keys is kept in `Sample.extra`. This file reads no pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_ALIAS, VOLUME_PLACEHOLDER, Message, Role, Sample
from medmvl.errors import DataError, did_you_mean
from medmvl.files import PathLike, atomic, existing_file, write_json, write_jsonl

#: Keys that this module understands; every other key of a record is passed through.
RECORD_KEYS = ("id", "conversations", "messages", "image", "image3d", "volume", "answer")

#: Speakers as they are spelt in the wild -> our role. "human"/"gpt" is LLaVA's spelling, the rest the chat style.
ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_SPEAKERS: dict[Role, str] = {"user": "human", "assistant": "gpt", "system": "system"}

#: Types of content parts that stand for a picture or a volume -> placeholder.
_MEDIA_PARTS = {"image": IMAGE_PLACEHOLDER, "image3d": VOLUME_PLACEHOLDER, "volume": VOLUME_PLACEHOLDER}


@dataclass(frozen=True, slots=True)
class Located:
    """A value read from a file together with where it stood; `error` is set instead if it could not be read."""

    where: str
    record: Any = None
    error: DataError | None = None


# --- one record -------------------------------------------------------------------------------------------------


def parse_record(record: Any, where: str) -> Sample:
    """Turn one record into a Sample; paths stay as they are written.

    Args:
        record: the row as a dictionary.
        where: file and line for messages, such as "train.jsonl, line 3".

    Raises:
        DataError: naming `where`, the id, and what is wrong with the record.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: a record must be an object with keys, not {_kind(record)}.")
    identifier = _parse_id(record, where)
    try:
        messages, part_paths = _parse_messages(record)
        images = _media_paths(record, ("image",), part_paths[IMAGE_PLACEHOLDER])
        volumes = _media_paths(record, ("image3d", "volume"), part_paths[VOLUME_PLACEHOLDER])
        _check_order(messages)
        _check_count(record, messages, IMAGE_PLACEHOLDER, images, "image")
        _check_count(record, messages, VOLUME_PLACEHOLDER, volumes, "image3d")
        answer = _parse_answer(record.get("answer"))
    except DataError as error:
        raise DataError(f"{where}, record {identifier!r}: {error}") from error
    extra = {key: value for key, value in record.items() if key not in RECORD_KEYS}
    return Sample(identifier, messages, images, volumes, answer, extra)


def to_record(sample: Sample) -> dict[str, Any]:
    """Return the record of `sample` in the `conversations` spelling; `parse_record` takes it back unchanged."""
    record: dict[str, Any] = {
        "id": sample.id,
        "conversations": [{"from": _SPEAKERS[turn.role], "value": turn.text} for turn in sample.messages],
    }
    if sample.images:
        record["image"] = list(sample.images)
    if sample.volumes:
        record["image3d"] = list(sample.volumes)
    if sample.answer is not None:
        record["answer"] = sample.answer
    return record | sample.extra


def _kind(value: Any) -> str:
    """Return what a JSON value is, in the words of a message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _parse_id(record: dict[str, Any], where: str) -> str:
    identifier = record.get("id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        return str(identifier)
    if isinstance(identifier, str) and identifier.strip():
        return identifier
    came = "has no 'id'" if identifier is None else f"has an 'id' that is {_kind(identifier)} or blank"
    raise DataError(f"{where}: the record {came}. Give every record an 'id' that is unique in its file.")


def _parse_messages(record: dict[str, Any]) -> tuple[tuple[Message, ...], dict[str, list[str]]]:
    """Return the turns, and the media paths that content parts carried, by placeholder."""
    if record.get("conversations") is not None and record.get("messages") is not None:
        raise DataError("it has both 'conversations' and 'messages'. Keep one of them.")
    paths: dict[str, list[str]] = {IMAGE_PLACEHOLDER: [], VOLUME_PLACEHOLDER: []}
    for key, speaker_key, text_key in (("conversations", "from", "value"), ("messages", "role", "content")):
        turns = record.get(key)
        if turns is None:
            continue
        if not isinstance(turns, list) or not turns:
            raise DataError(f"{key!r} must be a list of at least one turn, not {_kind(turns)} without turns.")
        messages = [_parse_turn(turn, f"{key}[{i}]", speaker_key, text_key, paths) for i, turn in enumerate(turns)]
        return tuple(messages), paths
    wanted = ("conversations", "messages")
    raise DataError(f"it has neither 'conversations' nor 'messages' (keys: {', '.join(map(str, record))}). "
                    + (_misspelt(record, wanted) or f"A record needs one of: {', '.join(wanted)}."))  # fmt: skip


def _misspelt(record: dict[str, Any], wanted: tuple[str, ...]) -> str:
    """Return a hint at a key of `record` that may stand for one of `wanted`; empty without one."""
    for key in record:
        hint = did_you_mean(str(key), wanted) if key not in RECORD_KEYS else ""
        if hint.startswith("Did you mean"):
            return f"The key {key!r} is not known. {hint}"
    return ""


def _parse_turn(turn: Any, name: str, speaker_key: str, text_key: str, paths: dict[str, list[str]]) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{name} must be an object with {speaker_key!r} and {text_key!r}, not {_kind(turn)}.")
    speaker = turn.get(speaker_key)
    if speaker not in ROLES:
        raise DataError(f"{name} has {speaker_key!r} = {speaker!r}. {did_you_mean(str(speaker), ROLES)}")
    role = ROLES[speaker]
    content = turn.get(text_key)
    if isinstance(content, list):
        text = _join_parts(content, name, paths)
    elif isinstance(content, str):
        text = content
    else:
        raise DataError(f"{name} must have a text {text_key!r}, not {_kind(content)}.")
    text = text.replace(VOLUME_ALIAS, VOLUME_PLACEHOLDER)
    if not text.strip() and role != "system":  # an empty system turn says: no system prompt, not a default one either
        what = "an empty answer" if role == "assistant" else "an empty text"
        raise DataError(f"{name} is {what}. Fill it or remove the record.")
    if role == "assistant" and (IMAGE_PLACEHOLDER in text or VOLUME_PLACEHOLDER in text):
        raise DataError(f"{name} is an answer and holds a placeholder; placeholders belong into questions.")
    return Message(role, text)


def _join_parts(parts: list[Any], name: str, paths: dict[str, list[str]]) -> str:
    """Join content parts to one text, a line per part as LLaVA writes it: `<image>` newline question."""
    pieces = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            pieces.append(part["text"])
        elif kind in _MEDIA_PARTS:
            placeholder = _MEDIA_PARTS[kind]
            pieces.append(placeholder)
            path = next((part[key] for key in (kind, "path") if part.get(key) is not None), None)
            if path is not None:
                paths[placeholder].extend(_path_list(path, f"{name} part {index}"))
        else:
            allowed = ", ".join(["text", *_MEDIA_PARTS])
            raise DataError(f"{name} part {index} has type {kind!r}. Allowed part types: {allowed}.")
    return "\n".join(pieces)


def _path_list(value: Any, name: str) -> list[str]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path.strip() for path in paths):
        raise DataError(f"{name} must be a path or a list of paths (strings), not {_kind(value)}.")
    return paths


def _media_paths(record: dict[str, Any], keys: tuple[str, ...], from_parts: list[str]) -> tuple[str, ...]:
    given = [key for key in keys if record.get(key) is not None]
    if len(given) > 1:
        raise DataError(f"it has both {given[0]!r} and {given[1]!r}, which mean the same. Keep one of them.")
    paths = _path_list(record[given[0]], repr(given[0])) if given else []
    if paths and from_parts:
        raise DataError(f"paths stand in {given[0]!r} and in the content parts. Keep one of them.")
    return tuple(paths or from_parts)


def _check_order(messages: tuple[Message, ...]) -> None:
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[0] != "user" else roles
    expected = [("user", "assistant")[i % 2] for i in range(len(turns))]
    greeting_alone = roles[0] == "assistant" and len(turns) < 2  # that is two turns in the wrong order
    if not turns or turns != expected or greeting_alone:
        raise DataError(
            f"the turns are {' → '.join(roles)}. Allowed: a system turn or a greeting of the assistant if you like, then user "
            "and assistant in turn."
        )


def _check_count(
    record: dict[str, Any], messages: tuple[Message, ...], placeholder: str, paths: tuple[str, ...], key: str
) -> None:
    found = sum(message.text.count(placeholder) for message in messages)
    if found != len(paths):
        hint = _misspelt(record, (key,)) if not paths else ""
        raise DataError(
            f"its text holds {found} {placeholder} placeholder(s), and {key!r} lists {len(paths)} path(s). "
            + (hint or f"Write one {placeholder} where each file belongs.")
        )


def _parse_answer(answer: Any) -> str | None:
    if answer is None:
        return None
    if not isinstance(answer, str):
        raise DataError(f"'answer' must be a string, not {_kind(answer)}.")
    if not answer.strip():
        raise DataError("'answer' is empty. Fill it or leave the key out.")
    return answer


# --- files of records -------------------------------------------------------------------------------------------


def file_format(path: PathLike) -> str:
    """Return "json" (an array), "jsonl" or "parquet", seen from the file's first bytes.

    Raises:
        DataError: if the file is missing, empty or begins like none of the three.
    """
    file = existing_file(path, "data file")
    with file.open("rb") as handle:
        if handle.read(4) == b"PAR1":
            return "parquet"
        handle.seek(0)
        head = b""
        while not head:
            block = handle.read(4096)
            if not block:
                raise DataError(f"The data file {file} is empty.")
            head = block.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:1] == b"[":
        return "json"
    if head[:1] == b"{":
        return "jsonl"
    raise DataError(f"The data file {file} begins with {head[:20]!r}: neither a JSON array, JSON Lines, nor Parquet.")


def read_records(path: PathLike) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON array, a JSON Lines or a Parquet file, unchecked.

    Raises:
        DataError: if the file is missing or damaged, with the line of the damage.
    """
    for located in iter_located(path):
        if located.error is not None:
            raise located.error
        yield located.record


def read_samples(path: PathLike) -> Iterator[Sample]:
    """Yield the file's records as Samples (paths as written); raise a DataError at the first bad one."""
    for located in iter_located(path):
        if located.error is not None:
            raise located.error
        yield parse_record(located.record, located.where)


def iter_located(path: PathLike) -> Iterator[Located]:
    """Yield every record with its place; a broken line comes as a `Located` with `error` and reading goes on."""
    file = existing_file(path, "data file")
    readers = {"json": _iter_json, "jsonl": _iter_jsonl, "parquet": _iter_parquet}
    return readers[file_format(file)](file)


def decode_line(line: bytes, where: str) -> Any:
    """Return the JSON value of one encoded record.

    Raises:
        DataError: if it is not UTF-8 JSON.
    """
    try:
        return json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{where}: not valid UTF-8 JSON: {error}.") from error


def _iter_jsonl(file: Path) -> Iterator[Located]:
    with file.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            where = f"{file.name}, line {number}"
            try:
                yield Located(where, decode_line(line, where))
            except DataError as error:
                yield Located(where, error=error)


def _iter_json(file: Path) -> Iterator[Located]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        yield Located(file.name, error=DataError(f"{file} is not a valid UTF-8 JSON array: {error}."))
        return
    for number, row in enumerate(rows, start=1):
        yield Located(f"{file.name}, item {number}", row)


def _iter_parquet(file: Path) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield Located(f"{file.name}, row {number}", drop_nulls(row))
    except (pa.ArrowException, OSError) as error:
        yield Located(file.name, error=DataError(f"{file} is not a readable Parquet file: {error}."))


def drop_nulls(value: Any) -> Any:
    """Return a value without null fields: a column table writes a null where a record simply lacked the key."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [drop_nulls(item) for item in value]
    return value


def write_records(path: PathLike, records: Iterable[dict[str, Any]]) -> None:
    """Write records in the format that the suffix of `path` names, whole or not at all.

    Raises:
        DataError: for another suffix, or if the records' fields cannot stand in one Parquet table.
    """
    suffix = Path(path).suffix
    if suffix == ".jsonl":
        write_jsonl(path, records)
    elif suffix == ".json":
        write_json(path, list(records))
    elif suffix == ".parquet":
        _write_parquet(path, list(records))
    else:
        raise DataError(f"Cannot write records to {path}: the suffix must be .json, .jsonl or .parquet.")


def _write_parquet(path: PathLike, records: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # from_pylist alone takes its columns from the first record and drops the others' keys without a word.
        names = list(dict.fromkeys(key for record in records for key in record))
        table = pa.table({name: [record.get(name) for record in records] for name in names})
    except (pa.ArrowException, TypeError) as error:
        raise DataError(
            f"Cannot write {path}: a field has different types in different records ({error}). Use .jsonl instead."
        ) from error
    with atomic(path) as temporary:
        pq.write_table(table, temporary)
