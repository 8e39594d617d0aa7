"""Content parts of chat messages: text, and images and volumes as data URIs, files, URLs or uuids."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from medmvl.data.read_options import DEFAULT_READING, ReadOptions
from medmvl.data.sample import Message
from medmvl.errors import DataError
from medmvl.files import resolve_under
from medmvl.processing.conversation import read_conversation
from medmvl.serving.server.failures import RequestError

Kind = Literal["image", "volume"]

#: Type of a content part -> what it holds. vLLM's clients know no volumes, but videos.
_KINDS: dict[str, Kind] = {"image_url": "image", "volume_url": "volume", "video_url": "volume"}
_KEYS = {"url", "detail", "read"}
_ROLES = {"developer": "system"}
_UUID = re.compile(r"[\w.:+/=-]{1,200}", re.ASCII)


@dataclass(frozen=True)
class Source:
    """One image or volume of a request.

    Attributes:
        kind: what the model's tower wants.
        data: the bytes of a file; None if it is a path, a URL, or was sent before.
        path: of a file or DICOM folder on the server.
        url: on an allowed host.
        uuid: name under which the client sends it once and names it later.
        read: how it is read.
    """

    kind: Kind
    data: bytes | None = None
    path: Path | None = None
    url: str | None = None
    uuid: str | None = None
    read: ReadOptions = DEFAULT_READING

    @property
    def empty(self) -> bool:
        """Whether it only names a study that was sent before."""
        return self.data is None and self.path is None and self.url is None


@dataclass(frozen=True)
class Question:
    """Turns of a chat, and their images and volumes in reading order."""

    messages: tuple[Message, ...]
    images: list[Source] = field(default_factory=list)
    volumes: list[Source] = field(default_factory=list)


@dataclass(frozen=True)
class Sources:
    """What content parts may name.

    Attributes:
        media_root: folder below which `file://` paths are allowed.
        url_hosts: hosts from which URLs are fetched.
        most: images and volumes of one request.
    """

    media_root: Path | None = None
    url_hosts: Sequence[str] = ()
    most: int = 8

    def question(self, turns: Sequence[Mapping[str, Any]]) -> Question:
        """Return the turns of a request and what their parts hold.

        Raises:
            RequestError: naming the turn and part.
        """
        plain = []
        for number, turn in enumerate(turns):
            role, content = turn.get("role"), turn.get("content")
            if isinstance(content, list):
                content = [self._part(part, f"messages[{number}].content[{i}]") for i, part in enumerate(content)]
            plain.append({"role": _ROLES.get(str(role), role), "content": content})
        try:
            found = read_conversation(plain)
        except DataError as error:
            raise RequestError(400, str(error)) from None
        if found.messages[-1].role != "user":
            raise RequestError(400, "The last message must be the user's, who is answered.")
        if len(found.images) + len(found.volumes) > self.most:
            given = len(found.images) + len(found.volumes)
            raise RequestError(400, f"The request holds {given} images and volumes; at most {self.most} are allowed.")
        return Question(found.messages, found.images, found.volumes)

    def _part(self, part: Any, where: str) -> Any:
        if not isinstance(part, Mapping):
            raise RequestError(400, f"{where} must be an object with a type.")
        kind = part.get("type")
        if kind == "text":
            return {"type": "text", "text": part.get("text")}
        if kind not in _KINDS:
            known = ", ".join(("text", *_KINDS))
            raise RequestError(400, f"{where} has an unknown type. Known: {known}.")
        source = self._source(_KINDS[kind], part, kind, where)
        return {"type": source.kind, source.kind: source}

    def _source(self, kind: Kind, part: Mapping[str, Any], name: str, where: str) -> Source:
        uuid = part.get("uuid")
        if uuid is not None and not (isinstance(uuid, str) and _UUID.fullmatch(uuid)):
            raise RequestError(400, f"{where}.uuid must be 1 to 200 letters, digits or one of . : + / = - _")
        value = part.get(name)
        if value is None and uuid is not None:
            return Source(kind, uuid=uuid)
        if isinstance(value, str):
            value = {"url": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("url"), str):
            raise RequestError(400, f"{where}.{name} must be an object with a url.")
        if unknown := sorted(set(map(str, value)) - _KEYS):
            raise RequestError(
                400, f"{where}.{name} has an unknown key {unknown[0][:60]!r}. Known: {', '.join(_KEYS)}."
            )
        try:
            read = ReadOptions.parse(value.get("read"), f"{where}.{name}.read")
        except DataError as error:
            raise RequestError(400, str(error)) from None
        return self._by_url(kind, value["url"], uuid, read, f"{where}.{name}.url")

    def _by_url(self, kind: Kind, url: str, uuid: str | None, read: ReadOptions, where: str) -> Source:
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            return Source(kind, data=decode_data_uri(url, where), uuid=uuid, read=read)
        if scheme == "file":
            return Source(kind, path=self._path(url, where), uuid=uuid, read=read)
        if scheme in ("http", "https"):
            if urlsplit(url).netloc not in self.url_hosts:
                raise RequestError(
                    400, f"{where} names a host that is not on the server's allow-list. Send a data: URI."
                )
            return Source(kind, url=url, uuid=uuid, read=read)
        raise RequestError(400, f"{where} must begin with data:, file: or a URL that the server allows.")

    def _path(self, url: str, where: str) -> Path:
        if self.media_root is None:
            raise RequestError(
                400, f"{where} names a file, and this server reads none (--media-root). Send a data: URI."
            )
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise RequestError(400, f"{where} must have the form file:///path, with three slashes.")
        try:
            return resolve_under(self.media_root, unquote(parts.path))
        except DataError:
            # One answer for all reasons: which files exist outside of the root is nobody's business.
            raise RequestError(400, f"{where} names no file below the server's media root.") from None


def decode_data_uri(url: str, where: str) -> bytes:
    """Return the bytes of a base64 data URI; its media type is ignored, the content decides.

    Raises:
        RequestError: if it is not base64, or empty.
    """
    head, comma, payload = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise RequestError(400, f"{where} must have the form data:TYPE;base64,DATA.")
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(400, f"{where} holds no valid base64.") from None
    if not data:
        raise RequestError(400, f"{where} is empty.")
    return data
