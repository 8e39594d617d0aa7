"""One record: parsing to a `Sample` and writing back.

A record is `{"id", "conversations": [{"from", "value"}], "image": [...], "image3d": [...], "answer", "read"}`. Chat-style
`messages` (role and content parts) may stand for `conversations`, `volume` for `image3d`, and a string for a list of one
path. Every other key is kept in `Sample.extra`. This module reads no files.
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Mapping, Sequence
from typing import Any

from medmvl.data.read_options import ReadOptions
from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_ALIAS, VOLUME_PLACEHOLDER, Message, Role, Sample
from medmvl.errors import DataError, counted, did_you_mean, shown

#: Keys that this module understands; every other key of a record is passed through.
RECORD_KEYS = ("id", "conversations", "messages", "image", "image3d", "volume", "answer", "read")

#: Keys under which a record lists its images and its volumes.
IMAGE_KEYS = ("image",)
VOLUME_KEYS = ("image3d", "volume")

#: Speakers as they are spelled in public files -> our role. "human"/"gpt" is LLaVA's spelling, the rest the chat style.
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

#: Deepest nesting of a record's values; a prediction row is written by a parser with a separate limit.
_DEEPEST = 100


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
        messages, part_paths = parse_messages(record)
        images = media_paths(record, IMAGE_KEYS, part_paths[IMAGE_PLACEHOLDER])
        volumes = media_paths(record, VOLUME_KEYS, part_paths[VOLUME_PLACEHOLDER])
        _check_order(messages)
        _check_count(record, messages, IMAGE_PLACEHOLDER, images, "image")
        _check_count(record, messages, VOLUME_PLACEHOLDER, volumes, "image3d")
        answer = _parse_answer(record.get("answer"))
        reading = ReadOptions.parse(record.get("read"))
        # Last, so that a fault of a known key is named in that key's own words.
        plain = {key: json_value(value, str(key)) for key, value in record.items()}
    except DataError as error:
        raise DataError(f"{where}, record {shown(identifier)}: {error}") from error
    extra = {key: value for key, value in plain.items() if key not in RECORD_KEYS}
    return Sample(identifier, messages, images, volumes, answer, extra, reading)


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
    if options := sample.reading.given():
        record["read"] = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return record | sample.extra


def json_value(value: Any, key: str, depth: int = 0) -> Any:
    """Return a record's value as JSON can hold it: dates and decimals of a table become texts and numbers.

    Raises:
        DataError: naming `key`, for a value that cannot stand in a JSON file: bytes, half of a surrogate pair, NaN, an
            integer of more than 4300 digits, or too many nested lists.
    """
    if isinstance(value, str):
        if not value.isascii():
            _check_unicode(value, key)
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) >= 10**4300:
            raise DataError(f"{key!r} holds an integer of more than 4300 digits. Write it as a string.")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{key!r} holds {value}, which is no JSON. Leave the key out, or write null.")
        return value
    if depth > _DEEPEST:
        raise DataError(f"{key!r} is nested more than {_DEEPEST} levels deep.")
    if isinstance(value, dict):
        return {str(name): json_value(item, key, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item, key, depth + 1) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return json_value(float(value), key)
    raise DataError(f"{key!r} holds {_kind(value)}, which is no JSON value. Remove it or write it as a text.")


def _check_unicode(text: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{key!r} holds half of a surrogate pair (U+{ord(text[error.start]):04X} at character {error.start}), which is no "
            "character. Remove it."
        ) from error


def _kind(value: Any) -> str:
    """Return the kind of a value in the words of a message; the value itself may be pixels."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null", bytes: "bytes"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _parse_id(record: dict[str, Any], where: str) -> str:
    identifier = record.get("id")
    if isinstance(identifier, int) and not isinstance(identifier, bool) and abs(identifier) < 10**40:
        return str(identifier)
    if isinstance(identifier, str) and identifier.strip():
        if not identifier.isascii():
            try:
                _check_unicode(identifier, "id")
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
        return identifier
    came = "has no 'id'" if identifier is None else f"has an 'id' that is {_kind(identifier)} or blank"
    raise DataError(f"{where}: the record {came}. Give every record an 'id' that is unique in its file.")


def parse_messages(record: Mapping[str, Any]) -> tuple[tuple[Message, ...], dict[str, list[str]]]:
    """Return the turns of a record, and the media paths that content parts carried, by placeholder.

    Raises:
        DataError: if the record has no conversation, or a turn breaks the format.
    """
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
    raise DataError(f"it has neither 'conversations' nor 'messages' (keys: {_shown_keys(record)}). "
                    + (_misspelt(record, wanted) or f"A record needs one of: {', '.join(wanted)}."))  # fmt: skip


def _shown_keys(record: Mapping[str, Any]) -> str:
    """Return the keys of a record for a message; at most twelve, each cut."""
    keys = [str(key)[:40] for key in record]
    return ", ".join(keys[:12]) + (", ..." if len(keys) > 12 else "")


def _misspelt(record: Mapping[str, Any], wanted: tuple[str, ...]) -> str:
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
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise DataError(f"{name} has {speaker_key!r} = {shown(speaker)}. {did_you_mean(str(speaker)[:40], ROLES)}")
    role = ROLES[speaker]
    content = turn.get(text_key)
    if isinstance(content, list):
        text = _join_parts(content, name, paths)
    elif isinstance(content, str):
        text = content
    else:
        raise DataError(f"{name} must have a text {text_key!r}, not {_kind(content)}.")
    if not text.isascii():
        _check_unicode(text, name)
    text = text.replace(VOLUME_ALIAS, VOLUME_PLACEHOLDER)
    if not text.strip() and role != "system":  # an empty system turn means: no system prompt, not even the default one
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
        elif isinstance(kind, str) and kind in _MEDIA_PARTS:
            placeholder = _MEDIA_PARTS[kind]
            pieces.append(placeholder)
            path = next((part[key] for key in (kind, "path") if part.get(key) is not None), None)
            if path is not None:
                paths[placeholder].extend(_path_list(path, f"{name} part {index}"))
        else:
            allowed = ", ".join(["text", *_MEDIA_PARTS])
            raise DataError(f"{name} part {index} has type {shown(kind)}. Allowed part types: {allowed}.")
    return "\n".join(pieces)


def _path_list(value: Any, name: str) -> list[str]:
    """Return a path or a list of paths as a list; a blank text is an empty cell of a table: no path."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, bytes) or (isinstance(first, dict) and "bytes" in first):
        raise DataError(f"{name} holds pictures, not paths. `medmvl data convert folder` writes them as files.")
    if not isinstance(value, list):
        raise DataError(f"{name} must be a path or a list of paths (strings), not {_kind(value)}.")
    for number, path in enumerate(value):
        if not isinstance(path, str):
            raise DataError(f"{name} must be a path or a list of paths (strings); entry {number} is {_kind(path)}.")
        if not path.strip():
            raise DataError(f"entry {number} of {name} is empty. Leave it out.")
        if not path.isascii():
            _check_unicode(path, name)
    return value


def media_paths(record: Mapping[str, Any], keys: tuple[str, ...], from_parts: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the paths of a record's images (`IMAGE_KEYS`) or volumes (`VOLUME_KEYS`).

    Args:
        record: the row.
        keys: the spellings of the key.
        from_parts: paths that stand in the content parts of its messages.

    Raises:
        DataError: if two spellings are used, a value is not a path or a list of paths, or paths stand in both places.
    """
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
        listed = " → ".join(roles[:8]) + (" → ..." if len(roles) > 8 else "")
        raise DataError(
            f"the turns are {listed}. Allowed: a system turn or a greeting of the assistant if you like, then user and "
            "assistant in turn."
        )


def _check_count(
    record: Mapping[str, Any], messages: tuple[Message, ...], placeholder: str, paths: tuple[str, ...], key: str
) -> None:
    found = sum(message.text.count(placeholder) for message in messages)
    if found != len(paths):
        hint = _misspelt(record, (key,)) if not paths else ""
        raise DataError(
            f"its text holds {counted(found, f'{placeholder} placeholder')}, and {key!r} lists {counted(len(paths), 'path')}. "
            + (hint or f"Write one {placeholder} where each file belongs.")
        )


def _parse_answer(answer: Any) -> str | None:
    if answer is None:
        return None
    if not isinstance(answer, str):
        raise DataError(f"'answer' must be a string, not {_kind(answer)}.")
    if not answer.strip():
        raise DataError("'answer' is empty. Fill it or leave the key out.")
    if not answer.isascii():
        _check_unicode(answer, "answer")
    return answer
