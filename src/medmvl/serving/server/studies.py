"""Prepared images and volumes in memory: read once, named again by content or by a client's uuid."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from medmvl.inference.visual_cache import digest
from medmvl.serving.server.content import Source
from medmvl.serving.server.failures import RequestError
from medmvl.serving.server.settings import Limits

_Key = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Study:
    """A prepared image (3, H, W) or volume (C, D, H, W), and the digest of its values."""

    tensor: Tensor
    digest: str


class StudyStore:
    """Prepared tensors, bounded in memory and time. What one key has sent, another cannot name.

    Args:
        prepare: reads a source; called once for the same content, also when requests come at the same time.
        limits: memory and time.
    """

    def __init__(self, prepare: Callable[[Source], Awaitable[Tensor]], limits: Limits) -> None:
        self._prepare = prepare
        self._bytes, self._seconds = limits.studies_mib * 2**20, 60 * limits.study_minutes
        self._kept: OrderedDict[_Key, tuple[float, Study]] = OrderedDict()
        self._names: dict[_Key, _Key] = {}  # (client, kind, uuid) -> content
        self._size = 0
        self._underway: dict[_Key, asyncio.Task[Study]] = {}
        self.queries = self.hits = 0

    async def get(self, source: Source, client: str) -> Study:
        """Return the study of a source.

        Args:
            client: id of the key that asks.

        Raises:
            RequestError: if it cannot be read, or no such study is kept.
        """
        self.forget_old()
        self.queries += 1
        name = (client, source.kind, source.uuid or "")
        if source.empty:
            return self._named(name)
        key = await asyncio.to_thread(_content_key, source)
        if source.uuid is not None:
            self._names[name] = key
        if key in self._kept:
            self.hits += 1
            return self._used(key)
        if key not in self._underway:
            task = asyncio.ensure_future(self._read(source))
            self._underway[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        # A client that hangs up must not end the reading that another waits for.
        return await asyncio.shield(self._underway[key])

    def forget_old(self) -> None:
        """Remove what was not used for the time that is set."""
        oldest = time.monotonic() - self._seconds
        while self._kept and next(iter(self._kept.values()))[0] < oldest:
            self._pop()

    def _named(self, name: _Key) -> Study:
        key = self._names.get(name)
        if key is None or key not in self._kept:
            raise RequestError(
                404,
                "No study with this uuid is kept (any more) for this key. Send it again with its data.",
                code="no_such_study",
            )
        self.hits += 1
        return self._used(key)

    def _used(self, key: _Key) -> Study:
        _, study = self._kept[key]
        self._kept[key] = (time.monotonic(), study)
        self._kept.move_to_end(key)
        return study

    async def _read(self, source: Source) -> Study:
        tensor = await self._prepare(source)
        return Study(tensor, await asyncio.to_thread(digest, tensor))

    def _finished(self, key: _Key, task: asyncio.Task[Study]) -> None:
        self._underway.pop(key, None)
        if task.cancelled() or task.exception() is not None:
            return
        study = task.result()
        self._kept[key] = (time.monotonic(), study)
        self._size += study.tensor.nbytes
        while self._size > self._bytes and len(self._kept) > 1:
            self._pop()

    def _pop(self) -> None:
        key, (_, study) = self._kept.popitem(last=False)
        self._size -= study.tensor.nbytes
        self._names = {name: content for name, content in self._names.items() if content != key}


def _content_key(source: Source) -> _Key:
    """Return what names the content of a source: a hash, or the paths, sizes and times of its files."""
    how = repr(sorted(source.read.given().items()))
    if source.data is not None:
        return source.kind, how, hashlib.sha256(source.data).hexdigest()
    if source.path is not None:
        return source.kind, how, *_status(source.path)
    return source.kind, how, str(source.url)


def _status(path: Path) -> tuple[str, ...]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(file.name, file.stat()) for file in files]
    return str(path), *(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states)
