"""Chat messages in transformers' form (roles, content parts with pictures) as messages and visual inputs of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medmvl.data.record import parse_messages
from medmvl.data.sample import Message
from medmvl.errors import DataError

#: Spellings of a content part's type in chat APIs -> the type in our records.
_SAME_TYPE = {"image_url": "image", "volume_url": "volume"}

_IMAGE_TYPES, _VOLUME_TYPES = ("image",), ("volume", "image3d")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, and the images and volumes that their content parts carry, in reading order."""

    messages: tuple[Message, ...]
    images: list[Any] = field(default_factory=list)
    volumes: list[Any] = field(default_factory=list)


def read_conversation(turns: Sequence[Mapping[str, Any]]) -> Conversation:
    """Return a conversation given as transformers takes it; parts are joined to text as in records.

    Args:
        turns: each with `role`, and `content` as text or as a list of parts: `{"type": "text", "text": ...}`, or `image` or
            `volume` with its picture (a path or an object) under its type, `path` or `url`.

    Raises:
        DataError: naming the turn, if it breaks the format or names a picture on a network.
    """
    images: list[Any] = []
    volumes: list[Any] = []
    plain = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise DataError(f"A turn is an object with role and content, not a {type(turn).__name__}.")
        content = turn.get("content")
        if isinstance(content, list | tuple):
            content = [_without_media(part, images, volumes) for part in content]
        plain.append({**turn, "content": content})
    messages, _ = parse_messages({"messages": plain})
    return Conversation(messages, images, volumes)


def _without_media(part: Any, images: list[Any], volumes: list[Any]) -> Any:
    """Return a content part without its picture, which is added to `images` or `volumes`."""
    if not isinstance(part, Mapping) or part.get("type") == "text":
        return part
    spelled = part.get("type")
    kind = _SAME_TYPE.get(str(spelled), spelled)
    value = next((part[key] for key in (spelled, kind, "path", "url") if part.get(key) is not None), None)
    if isinstance(value, Mapping):
        value = value.get("url")
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        raise DataError(
            "A content part names a picture on a network, and nothing is fetched. Give a path or the picture."
        )
    if value is not None and kind in _IMAGE_TYPES:
        images.append(value)
    if value is not None and kind in _VOLUME_TYPES:
        volumes.append(value)
    return {"type": kind}
