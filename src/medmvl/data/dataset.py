"""A file of records as a data set: indexed, lazy, flat in memory, with checked and absolute media paths.

JSON and JSON Lines files are read in place: an index holds where each record begins and ends, and a record is decoded
when it is requested. No second copy of the (possibly sensitive) text is made. A Parquet file is opened as a memory-mapped
Arrow table by the `datasets` library. Indices of big files are kept under `cache_folder()`.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from medmvl.data.formats import decode_line, drop_nulls, file_format, local_records
from medmvl.data.json_items import item_spans
from medmvl.data.read_options import DEFAULT_READING, with_reading
from medmvl.data.record import parse_record
from medmvl.data.roots import MediaRoots, Root
from medmvl.data.sample import Sample
from medmvl.errors import DataError, MedMVLError, the_named
from medmvl.files import PathLike, atomic, json_fault, private_folder, resolve_under
from medmvl.remote import RemotePath, as_root, join

#: Files below this size are indexed again each time, which takes less than a second.
CACHED_FROM_BYTES = 32 * 2**20


def cache_folder() -> Path:
    """Return the folder for indices: `$MEDMVL_CACHE`, or `medmvl` under the user's cache folder."""
    named = os.environ.get("MEDMVL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else Path(base if base else Path.home() / ".cache") / "medmvl"


class SampleDataset:
    """The records of a file, as Samples with absolute media paths.

    Args:
        path: a JSON array, JSON Lines or Parquet file of records, or its URL.
        roots: folders or URLs of the images and volumes; by default the folder that `report.json` next to the file names, else
            the file's own folder.
        tasks: keep only the records whose `task` is one of these; every record is decoded once to find them.
        name: of the data set in a recipe, for messages.

    Raises:
        DataError: here if the file is missing or of another format, or holds no record of `tasks`; on access, naming file,
            line and id, if the record breaks the format, or a file is missing or leaves its root.
    """

    def __init__(
        self,
        path: PathLike,
        roots: MediaRoots | None = None,
        *,
        tasks: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        source = as_root(path, "data file")
        self._name = name
        self.path = local_records(source).resolve()
        roots = MediaRoots.of(roots)
        self.image_root, self.volume_root = roots.of_file(source if isinstance(source, RemotePath) else self.path)
        self.reading = roots.reading
        kind = file_format(self.path)
        self._rows: _Rows = _ParquetRows(self.path) if kind == "parquet" else _JsonRows(self.path, kind)
        self._chosen = self._of_tasks(tasks) if tasks is not None else None
        self._tasks = sorted(tasks) if tasks is not None else None

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the file (its size or time), the roots, the tasks and the reading options."""
        facts: list[Any] = [_fingerprint(self.path), *(_named(r) for r in (self.image_root, self.volume_root))]
        facts += [self._tasks, *([self.reading.given()] if self.reading != DEFAULT_READING else [])]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    @property
    def has_remote_media(self) -> bool:
        """Whether images or volumes are below the URL of an object store."""
        return any(isinstance(root, RemotePath) for root in (self.image_root, self.volume_root))

    def __len__(self) -> int:
        return len(self._rows) if self._chosen is None else len(self._chosen)

    def record(self, index: int) -> dict[str, Any]:
        """Return record `index` as it stands in the file."""
        return self._rows[self._position(index)]

    def where(self, index: int) -> str:
        """Return file and place of record `index`, after the name of the data set if it has one, for messages."""
        where = self._rows.where(self._position(index))
        return where if self._name is None else f"data set {self._name!r}, {where}"

    @contextmanager
    def naming(self, index: int) -> Iterator[None]:
        """Put place and id of record `index` in front of the message of our errors raised inside, unless they name its place."""
        try:
            yield
        except MedMVLError as error:
            where, message = self.where(index), str(error)
            if where in message:
                raise
            identifier = self.sample(index).id
            message = message.removeprefix(f"Sample {identifier}: ")
            raise type(error)(f"{where}, record {identifier!r}: {message}") from error.__cause__

    def sample(self, index: int) -> Sample:
        """Return record `index` as a Sample with its paths as written, without looking at the media."""
        sample = parse_record(self.record(index), self.where(index))
        return replace(sample, reading=sample.reading.over(self.reading)) if self.reading.given() else sample

    def __getitem__(self, index: int) -> Sample:
        return resolve_media(self.sample(index), self.image_root, self.volume_root, self.where(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"SampleDataset({self.path.name!r}, {len(self)} records)"

    def _position(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        return index if self._chosen is None else int(self._chosen[index])

    def _of_tasks(self, tasks: Sequence[str]) -> np.ndarray:
        """Return the (n,) positions of the records of some tasks."""
        found = [str(row.get("task")) if isinstance(row := self._rows[i], dict) else "" for i in range(len(self._rows))]
        chosen = np.flatnonzero([task in tasks for task in found])
        if not len(chosen):
            raise DataError(
                f"{self.path} holds no record of {the_named('task', tasks)}; it has {', '.join(sorted(set(found)))}."
            )
        return chosen


def _named(root: Root) -> str:
    return str(root) if isinstance(root, RemotePath) else str(root.resolve())


def resolve_media(sample: Sample, image_root: PathLike, volume_root: PathLike, where: str) -> Sample:
    """Return `sample` with absolute paths of its images and volumes, which carry its reading options.

    Files below a URL are not asked for here: they are fetched when they are read.

    Raises:
        DataError: naming `where` and the id, if a path is missing or leaves its root.
    """
    if not sample.images and not sample.volumes:
        return sample
    try:
        images = tuple(resolve_below(image_root, path, "image") for path in sample.images)
        volumes = tuple(resolve_below(volume_root, path, "volume") for path in sample.volumes)
    except DataError as error:
        raise DataError(f"{where}, record {sample.id!r}: {error}") from error
    return replace(sample, images=with_reading(images, sample.reading), volumes=with_reading(volumes, sample.reading))


def resolve_below(root: PathLike, path: str, what: str) -> str:
    """Return the absolute path of a record's file, or its `RemotePath` if the root is a URL.

    Raises:
        DataError: if the path leaves the root, or does not exist below a local one.
    """
    if isinstance(root, RemotePath):
        return join(root, path, what)
    return str(resolve_under(root, path, what, links=True))


class _Rows(Protocol):
    """Random access to the raw records of a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...
    def where(self, index: int) -> str: ...


class _JsonRows:
    """Records of a JSON or JSON Lines file, read in place through (n, 3) int64: begin and end in bytes, number."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self._unit = "line" if kind == "jsonl" else "item"
        self._spans = _cached_spans(path, kind)
        self._handle: int | None = None

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Any:
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._handle).atexit = False  # loader threads may read until the very end
        begin, end, _ = (int(value) for value in self._spans[index])
        # pread has no file position, so threads and forked loader workers may share the handle.
        return decode_line(os.pread(self._handle, end - begin, begin), self.where(index))

    def where(self, index: int) -> str:
        return f"{self.path.name}, {self._unit} {int(self._spans[index, 2])}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}


class _ParquetRows:
    """Records of a Parquet file as a memory-mapped Arrow table."""

    def __init__(self, path: Path) -> None:
        import datasets

        self._name = path.name
        datasets.disable_progress_bars()
        folder = private_folder(cache_folder() / "arrow")  # the table holds the records' texts
        try:
            # The builder names its cache after path, size and time of the file, so a changed file is read again.
            self._table = datasets.Dataset.from_parquet(str(path), cache_dir=str(folder))
        except (pa.ArrowException, datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
            raise DataError(f"{path} is not a readable Parquet file: {error.__cause__ or error}.") from error

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Any:
        try:
            return drop_nulls(self._table[index])
        except (pa.ArrowException, ValueError) as error:
            raise DataError(f"{self.where(index)}: it cannot be decoded: {error}.") from error

    def where(self, index: int) -> str:
        return f"{self._name}, row {index + 1}"


def _cached_spans(path: Path, kind: str) -> np.ndarray:
    """Return the (n, 3) int64 spans of the records, from the cache where the file is big and unchanged."""
    if path.stat().st_size < CACHED_FROM_BYTES:
        return _spans(path, kind)
    cached = cache_folder() / "index" / f"{_fingerprint(path)}.npy"
    if not cached.is_file():
        spans = _spans(path, kind)
        try:
            with atomic(cached) as temporary:
                np.save(temporary, spans, allow_pickle=False)
        except OSError:  # a read-only or full cache costs a second at the next start, nothing else
            return spans
    return np.load(cached, mmap_mode="r", allow_pickle=False)


def _fingerprint(path: Path) -> str:
    """Return a digest of the file's place, size, time, and its first and last 64 kB."""
    state = path.stat()
    digest = hashlib.sha256(f"spans-1|{path}|{state.st_size}|{state.st_mtime_ns}".encode())
    with path.open("rb") as handle:
        digest.update(handle.read(65536))
        handle.seek(max(0, state.st_size - 65536))
        digest.update(handle.read(65536))
    return digest.hexdigest()[:32]


def _spans(path: Path, kind: str) -> np.ndarray:
    return _line_spans(path) if kind == "jsonl" else _item_spans(path)


def _line_spans(path: Path) -> np.ndarray:
    """Return (begin, end, line number) of the non-blank lines, reading the file in blocks of 16 MB."""
    ends: list[np.ndarray] = []
    offset, last = 0, b"\n"
    with path.open("rb") as handle:
        while block := handle.read(2**24):
            ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + offset)
            offset, last = offset + len(block), block[-1:]
    end = np.concatenate(ends) if ends else np.empty(0, np.int64)
    if last != b"\n":
        end = np.append(end, offset)
    begin = np.append(0, end[:-1] + 1)[: len(end)]
    spans = np.stack([begin, end, np.arange(1, len(end) + 1)], axis=1).astype(np.int64)
    return spans[_not_blank(path, spans)]


def _not_blank(path: Path, spans: np.ndarray) -> np.ndarray:
    """Return a mask of the spans that hold more than white space; only short ones are looked at."""
    keep = np.ones(len(spans), bool)
    with path.open("rb") as handle:
        for index in np.flatnonzero(spans[:, 1] - spans[:, 0] < 16):
            begin, end, _ = (int(value) for value in spans[index])
            handle.seek(begin)
            keep[index] = bool(handle.read(end - begin).strip())
    return keep


def _item_spans(path: Path) -> np.ndarray:
    """Return (begin, end, number) of the items of a JSON array; its text is in memory once, its items are not kept."""
    try:
        text = path.read_bytes().decode("utf-8")
        spans = item_spans(text)
    except (ValueError, IndexError) as error:
        reason = "it ends in the middle" if isinstance(error, IndexError) else json_fault(error)
        raise DataError(f"{path} is not a valid UTF-8 JSON array: {reason}.") from error
    flat = np.array(spans, np.int64).reshape(-1)
    if not text.isascii():
        # Characters to bytes: the lengths of the encoded pieces between neighboring positions, summed up.
        pieces = zip(np.append(0, flat[:-1]), flat, strict=True)
        flat = np.cumsum([len(text[begin:end].encode()) for begin, end in pieces], dtype=np.int64)
    return np.column_stack([flat.reshape(-1, 2), np.arange(1, len(spans) + 1)])
