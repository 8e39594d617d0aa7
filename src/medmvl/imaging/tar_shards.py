"""Tar shards with an index, in a folder or an object store: the layout of WebDataset, read at random by name.

A set of shards contains `manifest.json`, `index.json`, and per shard `shard-00000.tar` with its own `shard-00000.json`. A tar file
holds `NAME.SUFFIX` (the payload) and `NAME.json` (facts about it) of each item, so that WebDataset's readers read it too. The index
states where each payload begins; a shard without its own index is incomplete.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import tarfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from medmvl.errors import DataError, MedMVLError
from medmvl.files import PathLike, atomic, existing_file, private_folder, read_json
from medmvl.remote import (
    GRACE_SECONDS,
    RemotePath,
    as_root,
    cache_limit,
    exists,
    join,
    local_range,
    range_copy,
    read_bytes,
    write_bytes,
)

FORMAT = "medmvl-shards-1"
MANIFEST, INDEX = "manifest.json", "index.json"

#: Smallest payload that is fetched alone while its shard is not there: below, a request costs more than it saves.
OWN_REQUEST_BYTES = 1 << 18
#: Whole shards that a process fetches in the background at a time; the first ones are complete sooner than if all came at once.
BACKGROUND_SHARDS = 2

Item = tuple[str, bytes, Mapping[str, Any]]
"""Name, payload and facts of an item."""


def shard_name(number: int) -> str:
    """Return the name of a shard without its suffix."""
    return f"shard-{number:05d}"


def pack(items: Iterable[Item], suffix: str) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the bytes of a tar file and its rows {"name", "offset", "bytes", **facts}.

    The bytes depend on the items alone: owners are 0 and times are 0.
    """
    buffer = io.BytesIO()
    rows = []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, payload, facts in items:
            _add(tar, f"{name}.{suffix}", payload)
            # The payload is followed by zeros up to a multiple of 512 bytes.
            rows.append(
                {"name": name, "offset": tar.offset - -(-len(payload) // 512) * 512, "bytes": len(payload), **facts}
            )
            _add(tar, f"{name}.json", json_bytes(dict(facts)))
    return buffer.getvalue(), rows


def _add(tar: tarfile.TarFile, name: str, payload: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(payload), 0o600
    tar.addfile(entry, io.BytesIO(payload))


def json_bytes(value: Any) -> bytes:
    """Return a JSON value as bytes that do not depend on the order of keys."""
    return json.dumps(value, sort_keys=True).encode()


def write_shard(target: PathLike, number: int, items: Iterable[Item], suffix: str) -> dict[str, Any]:
    """Write a shard, its index last, and return the content of its index; several processes may write other shards.

    Returns:
        {"file", "bytes", "sha256", "suffix", "rows"}.
    """
    data, rows = pack(items, suffix)
    file = f"{shard_name(number)}.tar"
    _write(target, file, data)
    index = {
        "file": file,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "suffix": suffix,
        "rows": rows,
    }
    _write(target, f"{shard_name(number)}.json", json_bytes(index))
    return index


def read_shard_index(target: PathLike, number: int) -> dict[str, Any] | None:
    """Return the index of a complete shard, or None if it is not there or cannot be used."""
    content = _read(target, f"{shard_name(number)}.json")
    usable = isinstance(content, dict) and content.get("file") == f"{shard_name(number)}.tar" and "rows" in content
    return content if usable and _there(target, content["file"]) else None


def begin_set(target: PathLike, facts: Mapping[str, Any]) -> None:
    """Write the manifest of shards that are being written; readers refuse them until `write_set`."""
    _write(target, MANIFEST, json_bytes({"format": FORMAT, "finished": False, **facts}))


def write_set(target: PathLike, shards: list[dict[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write the joint index and the manifest of finished shards."""
    _write(target, INDEX, json_bytes({"shards": shards}))
    count = sum(len(shard["rows"]) for shard in shards)
    _write(
        target,
        MANIFEST,
        json_bytes({"format": FORMAT, "finished": True, "shards": len(shards), "count": count, **facts}),
    )


def read_set_manifest(source: PathLike, *, finished: bool = True) -> dict[str, Any] | None:
    """Return the manifest of a set of shards, or None if there is none or it is that of something else.

    Args:
        source: folder or URL.
        finished: only of a set whose shards are all written.
    """
    content = _read(source, MANIFEST)
    known = isinstance(content, dict) and content.get("format") == FORMAT
    return content if known and (content.get("finished") is True or not finished) else None


def _checked_shards(index: Any, source: PathLike) -> list[dict[str, Any]]:
    """Return the shards of a joint index whose payloads are within their shards, and the shards in their folder.

    Raises:
        DataError: if it is not such an index.
    """
    shards = index.get("shards") if isinstance(index, dict) else None
    if not isinstance(shards, list) or not all(map(_is_shard, shards, range(len(shards)))):
        raise DataError(f"{source}/{INDEX} is damaged. Write the shards again.")
    return shards


def _is_shard(shard: Any, number: int) -> bool:
    named = isinstance(shard, dict) and shard.get("file") == f"{shard_name(number)}.tar"
    if not named or not _is_size(shard.get("bytes")) or not isinstance(shard.get("rows"), list):
        return False
    return isinstance(shard.get("sha256"), str) and all(_is_row(row, shard["bytes"]) for row in shard["rows"])


def _is_row(row: Any, size: int) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        return False
    return _is_size(row.get("offset")) and _is_size(row.get("bytes")) and row["offset"] + row["bytes"] <= size


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


class TarShards:
    """Random access to the payloads of a set of shards; may be passed to worker processes.

    From an object store, whole shards are fetched if all of them fit into the local cache, and else only the payloads asked for.
    Until a shard has been fetched in the background, a payload of at least `OWN_REQUEST_BYTES` of it is fetched with a request of its
    own, so that no reader waits for a whole shard.

    Args:
        source: folder or URL of the set.

    Raises:
        DataError: if it is not a finished set of shards.
    """

    def __init__(self, source: PathLike) -> None:
        self.source = as_root(source)
        manifest = read_set_manifest(self.source)
        index = None if manifest is None else _read(self.source, INDEX)
        if manifest is None or index is None:
            raise DataError(
                f"{self.source} is not a finished set of shards. Write it with `medmvl data cache --shards`."
            )
        self.manifest = manifest
        self._shards = _checked_shards(index, self.source)
        self.rows = {row["name"]: (number, row) for number, shard in enumerate(self._shards) for row in shard["rows"]}
        total = sum(shard["bytes"] for shard in self._shards)
        self._whole = isinstance(self.source, RemotePath) and total <= cache_limit()
        self._copies: dict[int, tuple[float, Path]] = {}
        self._under_way: set[tuple[int, int]] = set()  # (process, shard)

    def read(self, name: str) -> bytes:
        """Return the payload of an item.

        Raises:
            DataError: if its shard is missing or too short.
        """
        number, row = self.rows[name]
        path, offset = self._local(number, row)
        with existing_file(path, "shard").open("rb") as handle:
            data = os.pread(handle.fileno(), row["bytes"], offset)
        if len(data) != row["bytes"]:
            raise DataError(f"{self.source}/{self._shards[number]['file']} is cut off. Write the shards again.")
        return data

    def read_ahead(self, name: str) -> None:
        """Fetch an item into the local cache, or begin to fetch the whole shard that holds it."""
        if not isinstance(self.source, RemotePath):
            return
        number, row = self.rows[name]
        if self._whole:
            self._fetch_in_background(number)
        else:
            self._local(number, row)

    def _local(self, number: int, row: Mapping[str, Any]) -> tuple[Path, int]:
        """Return a local file with the payload of a row, and the offset of the payload in it."""
        shard = self._shards[number]
        if not isinstance(self.source, RemotePath):
            return Path(self.source) / shard["file"], row["offset"]
        url = join(self.source, shard["file"])
        if self._whole and (row["bytes"] < OWN_REQUEST_BYTES or self._is_there(number)):
            return self._copy_of(number), row["offset"]
        if self._whole:
            self._fetch_in_background(number)
        return local_range(url, row["offset"], row["bytes"], shard["sha256"]), 0

    def _is_there(self, number: int) -> bool:
        """Whether the local copy of a whole shard has been fetched."""
        return number in self._copies or range_copy(*self._extent(number)) is not None

    def _extent(self, number: int) -> tuple[RemotePath, int, int, str]:
        shard = self._shards[number]
        return join(RemotePath(self.source), shard["file"]), 0, shard["bytes"], shard["sha256"]

    def _copy_of(self, number: int) -> Path:
        """Return the local copy of a whole shard; that it is in use is noted every few seconds, not at every reading."""
        noted, path = self._copies.get(number, (-math.inf, Path()))
        if time.monotonic() - noted > GRACE_SECONDS / 4:
            path = local_range(*self._extent(number))
            self._copies[number] = time.monotonic(), path
        return path

    def _fetch_in_background(self, number: int) -> None:
        """Begin to fetch a whole shard, once per process; a fault is left to the reader of the payload."""
        key = os.getpid(), number
        if key in self._under_way:
            return
        self._under_way.add(key)

        def fetch() -> None:
            with suppress(MedMVLError), _turn(os.getpid()):
                self._copy_of(number)

        # A daemon: the end of the process does not wait for it.
        threading.Thread(target=fetch, name="shard", daemon=True).start()


@lru_cache(maxsize=1)
def _turn(process: int) -> threading.Semaphore:
    """Return the semaphore of background fetches; one per process, since a forked one would keep the state of the fork."""
    return threading.Semaphore(BACKGROUND_SHARDS)


# --- a folder or an object store ----------------------------------------------------------------------------------------


def _write(target: PathLike, name: str, data: bytes) -> None:
    place = as_root(target)
    if isinstance(place, RemotePath):
        write_bytes(join(place, name), data)
        return
    private_folder(place)
    with atomic(place / name) as temporary:
        temporary.write_bytes(data)


def _read(source: PathLike, name: str) -> Any:
    """Return the JSON value in a file of a set, None if it is missing or damaged."""
    place = as_root(source)
    if isinstance(place, RemotePath):
        url = join(place, name)
        try:
            return json.loads(read_bytes(url)) if exists(url) else None
        except ValueError:
            return None
    try:
        return read_json(place / name) if (place / name).is_file() else None
    except DataError:
        return None


def _there(target: PathLike, name: str) -> bool:
    place = as_root(target)
    return exists(join(place, name)) if isinstance(place, RemotePath) else (place / name).is_file()
