"""Protocols from YAML, with errors that name the key and the closest known one."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from medmvl.errors import WardError, did_you_mean, listed
from medmvl.files import PathLike, load_yaml
from medmvl.validation import allowed
from medmvl.ward.protocol import Protocol

S = typing.TypeVar("S", bound=BaseModel)
#: keys whose values are never shown, since a password could stand there by mistake
_SECRET = ("password_env", "token_env")


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error."""

    def construct_scalar(self, node: Any) -> Any:
        if any("\ud800" <= char <= "\udfff" for char in str(node.value)):
            raise WardError(
                f"line {node.start_mark.line + 1}: the text is not valid Unicode (half of a surrogate pair)."
            )
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise WardError(f"line {key_node.start_mark.line + 1}: a key must be a word, not {key!r}.")
            if key in seen:
                raise WardError(f"line {key_node.start_mark.line + 1}: the key {key!r} is given twice.")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_protocol(source: PathLike | Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> Protocol:
    """Return the protocol in a YAML file or a mapping.

    Args:
        source: path of the file, or its content.
        settings: values that replace those of the file, by dotted keys such as "results.language".

    Raises:
        WardError: for a missing file, broken YAML, or listing every key that is unknown or has a value that is not
            allowed.
    """
    if isinstance(source, Mapping):
        name, values = "the protocol", dict(source)
    else:
        name, values = str(source), _read(Path(source))
    for key, value in (settings or {}).items():
        values = _replaced(values, key.split("."), value, key)
    return parse_section(Protocol, values, name, "protocol")


def parse_section(section: type[S], values: Mapping[str, Any], name: str, kind: str = "target") -> S:
    """Return `values` as a section.

    Args:
        name: where the values come from, for messages.
        kind: what they are to be, for messages.

    Raises:
        WardError: listing every key that is unknown or has a value that is not allowed.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        faults = list(
            dict.fromkeys(_words(detail, section) for detail in error.errors() if not _is_wrong_member(detail))
        )
        raise WardError(listed(f"{name} is not a valid {kind}:", faults)) from error


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise WardError(f"The protocol {file} does not exist.")
    try:
        values = load_yaml(file.read_text(encoding="utf-8"), _Loader)
    except WardError as error:
        raise WardError(f"{file}, {error}") from error
    except yaml.MarkedYAMLError as error:  # its own text quotes the line, which may hold a password
        line = 0 if error.problem_mark is None else error.problem_mark.line + 1
        raise WardError(f"{file}, line {line}: not valid YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # bad text or dates; thousands of levels
        raise WardError(f"{file} is not valid YAML: {type(error).__name__}.") from error
    if not isinstance(values, dict):
        raise WardError(f"{file} must hold keys and values, such as `name: chest-ct`.")
    return values


def _replaced(values: dict[str, Any], path: list[str], value: Any, key: str) -> dict[str, Any]:
    """Return a copy of `values` with the value at `path` replaced."""
    if len(path) == 1:
        return {**values, path[0]: value}
    inner = values.get(path[0], {})
    if not isinstance(inner, dict):
        raise WardError(f"The setting {key!r} goes through {path[0]!r}, which has no keys of its own.")
    return {**values, path[0]: _replaced(inner, path[1:], value, key)}


def _words(detail: ErrorDetails, root: type[BaseModel]) -> str:
    """Return one fault in words: path, what came, what is allowed."""
    location = [step for step in detail["loc"] if not _is_mark(step)] or list(detail["loc"][-1:])
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).lstrip(".")
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown key. {did_you_mean(str(location[-1]), _known_keys(root, location[:-1]))}"
    message = allowed(detail)
    if location != list(detail["loc"]) and detail["type"] in ("string_type", "model_type"):
        message = "must be a name, or a code with the keys value, scheme and meaning"
    came = "" if detail["type"] == "missing" else _shown(detail["input"], location)
    return f"{path or 'top level'}: {message}{came}."


def _shown(came: Any, location: list[int | str]) -> str:
    """Return a value for a message, without passwords: of an address with a user, only what follows the last `@`."""
    if not isinstance(came, str | int | float | bool | type(None)) or (location and location[-1] in _SECRET):
        return ""
    return f" (got {re.sub('.*@', '...@', came, flags=re.DOTALL) if isinstance(came, str) else came!r})"


def _is_wrong_member(detail: ErrorDetails) -> bool:
    """Whether a fault is about the member of a union that was not meant: a mapping is never meant as a name."""
    return (
        any(map(_is_mark, detail["loc"][-1:])) and detail["type"] == "string_type" and isinstance(detail["input"], dict)
    )


def _is_mark(step: int | str) -> bool:
    """Whether a step of a location is pydantic's mark for the member of a union rather than a key."""
    return isinstance(step, str) and (step in ("str", "CodeSpec") or "[" in step)


def _known_keys(root: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """Return the keys of the section at `location` below `root`."""
    sections: list[type[BaseModel]] = [root]
    for step in location:
        if isinstance(step, str):
            fields = [section.model_fields[step] for section in sections if step in section.model_fields]
            sections = [found for field in fields for found in _sections_in(field.annotation)]
    return [name for section in sections for name in section.model_fields]


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for member in typing.get_args(annotation) for found in _sections_in(member)]
