"""Ready tensors on disk: shards of equal small arrays, found by the path of their source, never stale silently.

A cache folder holds `manifest.json` (geometry, its hash, counts) and pairs `shard-00000.npy` (n, C, D, H, W) and
`shard-00000.json` (keys and source fingerprints of its n rows). A key is a hash of the source's path below its root:
neither paths nor record ids are stored, because both may name a patient.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmvl.errors import GeometryError, ImagingError
from medmvl.files import PathLike, atomic, existing_folder, read_json, write_json
from medmvl.imaging.geometry import Geometry

FORMAT = 1
MANIFEST = "manifest.json"
#: bytes per shard, which a job holds in memory: 32 rows of 32x256x256 uint8, of a larger geometry fewer
SHARD_BYTES = 2**26
#: most rows per shard: a killed job repeats at most so many volumes
MOST_ROWS = 32


class StaleCacheError(ImagingError):
    """A source changed after it was cached."""


@dataclass(frozen=True)
class Fingerprint:
    """What a source file or folder was when it was cached.

    Attributes:
        size: bytes, over all files of a folder.
        modified: time of the latest change in ns.
        sha256: digest of the content, over all files of a folder in the order of their names.
        reading: digest of the options it was read with (`reading_digest`).
    """

    size: int
    modified: int
    sha256: str
    reading: str = ""

    @classmethod
    def of(cls, source: Path, reading: str = "") -> Fingerprint:
        """Take the fingerprint of a file or of a folder (all files in it)."""
        digest = hashlib.sha256()
        files = _files(source)
        for file in files:
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        return cls(*_stat(files), sha256=digest.hexdigest(), reading=reading)

    def still_fits(self, source: Path) -> bool:
        """Say whether the source is unchanged: by size and time, and by its content where only the time differs."""
        size, modified = _stat(_files(source))
        if size != self.size:
            return False
        return modified == self.modified or Fingerprint.of(source).sha256 == self.sha256


def reading_digest(options: Mapping[str, Any]) -> str:
    """Return 16 hex digits over the options of `read_volume` (a series UID among them stays unreadable); "" for none."""
    if not options:
        return ""
    return hashlib.sha256(json.dumps(dict(options), sort_keys=True).encode()).hexdigest()[:16]


def key_of(source: PathLike, root: PathLike | None) -> str:
    """Return the cache key of a source: a hash of its path below `root`, or of its absolute path outside of it."""
    path = Path(source).resolve()
    if root is not None and path.is_relative_to(base := Path(root).resolve()):
        path = path.relative_to(base)
    return hashlib.sha256(path.as_posix().encode()).hexdigest()[:32]


class CacheWriter:
    """Appends arrays to a cache folder; an interrupted one goes on where its last whole shard ended.

    Args:
        folder: made if absent.
        geometry: what the arrays were prepared with.
        shard_size: rows per shard; default: `SHARD_BYTES`, at most `MOST_ROWS`.

    Raises:
        GeometryError: if the folder holds a cache of another geometry.
        ImagingError: if another job is writing to the folder.
    """

    def __init__(self, folder: PathLike, geometry: Geometry, shard_size: int | None = None) -> None:
        self.folder = Path(folder)
        self.geometry = geometry
        shape = (geometry.channels, *geometry.size)
        row_bytes = math.prod(shape) * np.dtype(geometry.dtype).itemsize
        self.shard_size = shard_size or min(max(SHARD_BYTES // row_bytes, 1), MOST_ROWS)
        self.known: dict[str, Fingerprint] = {}
        self._rows = np.empty((self.shard_size, *shape), geometry.dtype)  # of the unfinished shard, as many as keys
        self._keys: list[str] = []
        self._shard = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = _lock(self.folder)
        self._unlock = weakref.finalize(self, os.close, handle) if handle is not None else lambda: None
        for left_behind in self.folder.glob(".[0-9]*.*"):  # half-written files of a job that was killed
            left_behind.unlink()
        if (self.folder / MANIFEST).exists():
            geometry.check_same(read_json(self.folder / MANIFEST)["geometry_hash"], f"The cache {self.folder}")
            self._continue()
        else:
            self._write_manifest({})

    def add(self, key: str, array: np.ndarray, fingerprint: Fingerprint) -> None:
        """Append one array of the geometry's shape (C, D, H, W) and dtype; a key again supersedes its earlier row."""
        expected = (self.geometry.channels, *self.geometry.size)
        if array.shape != expected or array.dtype != self.geometry.dtype:
            raise ImagingError(
                f"The cache takes {expected} {self.geometry.dtype} arrays, this is {array.shape} {array.dtype}."
            )
        if self.known.get(key) == fingerprint:
            raise ImagingError(f"The cache already holds the key {key} of this very source.")
        self.known[key] = fingerprint
        self._rows[len(self._keys)] = array
        self._keys.append(key)
        if len(self._keys) == self.shard_size:
            self.flush()
            self._shard, self._keys = self._shard + 1, []

    def flush(self) -> None:
        """Write the rows of the unfinished shard, so that nothing is lost from here on."""
        if not self._keys:
            return
        name = self.folder / f"shard-{self._shard:05d}"
        with atomic(name.with_suffix(".npy")) as temporary:
            np.save(temporary, self._rows[: len(self._keys)])
        # The list of keys comes last: a shard without one was not finished and is written again.
        write_json(
            name.with_suffix(".json"), [{"key": key, **asdict(self.known[key])} for key in self._keys], indent=None
        )

    def close(self, facts: Mapping[str, Any] | None = None) -> None:
        """Write the unfinished shard and the manifest, with `facts` about the job in it."""
        self.flush()
        self._write_manifest(dict(facts or {}))
        self._unlock()

    def _write_manifest(self, facts: dict[str, Any]) -> None:
        write_json(
            self.folder / MANIFEST,
            {
                "format": FORMAT,
                "geometry": self.geometry.to_dict(),
                "geometry_hash": self.geometry.hash,
                "dtype": self.geometry.dtype,
                "shape": [self.geometry.channels, *self.geometry.size],
                "count": len(self.known),
                **facts,
            },
        )

    def _continue(self) -> None:
        for number, rows in enumerate(_shards(self.folder)):
            keys = [row.pop("key") for row in rows]
            self.known.update((key, Fingerprint(**row)) for key, row in zip(keys, rows, strict=True))
            self._shard = number + 1
            if len(rows) < self.shard_size:  # only the last one can be; it is filled up
                self._shard, self._keys = number, keys
                # A job killed between the two files of a shard leaves more rows than keys; those are made again.
                self._rows[: len(keys)] = np.load(_shard_name(self.folder, number), mmap_mode="r")[: len(keys)]


class CacheReader:
    """Reads a cache folder through memory maps; safe to hand to worker processes.

    Args:
        folder: made by `medmvl data cache`.
        geometry: the model's; None reads whatever is there.
        root: the folder below which the sources' paths are taken (the volume root of the data file); a cache serves
            one root.

    Raises:
        GeometryError: with both hashes, if the cache was made with another geometry.
        ImagingError: if the folder is no cache, or damaged.
    """

    def __init__(self, folder: PathLike, geometry: Geometry | None = None, root: PathLike | None = None) -> None:
        self.folder = existing_folder(folder, "cache")
        self.root = root
        manifest = read_json(self.folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ImagingError(f"{self.folder / MANIFEST} is not the manifest of a cache of format {FORMAT}.")
        self.geometry = Geometry.from_dict(manifest["geometry"])
        if self.geometry.hash != manifest["geometry_hash"]:
            raise GeometryError(
                f"The cache {self.folder} was made with geometry {manifest['geometry_hash']}; its description now gives "
                f"{self.geometry.hash}. Its meaning has changed: make the cache anew."
            )
        if geometry is not None:
            geometry.check_same(self.geometry.hash, f"The cache {self.folder}")
        self._places: dict[str, tuple[int, int]] = {}
        self._fingerprints: dict[str, Fingerprint] = {}
        for number, rows in enumerate(_shards(self.folder)):
            for index, row in enumerate(rows):
                key = row.pop("key")
                self._places[key], self._fingerprints[key] = (number, index), Fingerprint(**row)
        self._arrays: dict[int, np.ndarray] = {}
        self._fresh: set[str] = set()
        self._keys: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> np.ndarray:
        """Return the array (C, D, H, W) of a key, as a read-only view of the file."""
        number, index = self._places[key]
        if number not in self._arrays:
            try:
                self._arrays[number] = np.load(_shard_name(self.folder, number), mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise ImagingError(
                    f"{_shard_name(self.folder, number)} is damaged: {error}. Delete the shard (.npy and .json) and run "
                    "`medmvl data cache` again."
                ) from error
        return self._arrays[number][index]

    def tensor(self, source: PathLike) -> torch.Tensor | None:
        """Return a copy of the prepared tensor (C, D, H, W) of a source, None if it is not in the cache.

        The source is compared with its fingerprint once per reader; where it is not on this machine, the cache stands
        for it.

        Raises:
            StaleCacheError: if the source has changed since.
        """
        key = self._keys.get(str(source)) or key_of(source, self.root)
        if key not in self._places:
            return None
        if key not in self._fresh:
            path = Path(source)
            if path.exists() and not self._fingerprints[key].still_fits(path):
                raise StaleCacheError(
                    f"{path} has changed since it was cached in {self.folder}. Run `medmvl data cache` again."
                )
            self._fresh.add(key)
            self._keys[str(source)] = key
        return torch.from_numpy(np.array(self[key]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}


def _lock(folder: Path) -> int | None:
    """Return a handle that holds the folder for one writer; the system lets go when the process ends, however it ends.

    Raises:
        ImagingError: if another writer holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ImagingError(
            f"Another job is writing to the cache {folder}. Wait for it, or use another folder."
        ) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle


def _shards(folder: Path) -> list[list[dict[str, Any]]]:
    """Rows of each finished shard, in order; the row of numbers must have no hole."""
    shards = []
    for number in range(len(list(folder.glob("shard-*.json")))):
        listing = _shard_name(folder, number).with_suffix(".json")
        if not listing.exists() or not _shard_name(folder, number).exists():
            raise ImagingError(f"The cache {folder} lacks shard {number}. Delete the folder and make it anew.")
        shards.append(json.loads(listing.read_text(encoding="utf-8")))
    return shards


def _shard_name(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npy"


def _files(source: Path) -> list[Path]:
    return sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]


def _stat(files: list[Path]) -> tuple[int, int]:
    stats = [file.stat() for file in files]
    return sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
