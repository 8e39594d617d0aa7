"""On-disk cache of prepared tensors in shards, indexed by the path of the source file.

A cache folder contains `manifest.json` (geometry, its hash, counts) and pairs of `shard-00000.npy` (n, C, D, H, W) and
`shard-00000.json` (keys and source fingerprints of its n rows). A key is a hash of the source's path below its root and of
the cache's random salt, so that keys of known paths cannot be listed beforehand or compared between caches. Neither paths nor record ids are stored, because both may identify a patient. A source that changed after it was cached
is detected by its fingerprint and refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmvl.errors import DataError, GeometryError, ImagingError, naming
from medmvl.files import OutputLock, PathLike, atomic, existing_folder, private_folder, read_json, write_json
from medmvl.imaging.preprocessing.geometry import Geometry
from medmvl.remote import RemotePath, below

FORMAT = 1
MANIFEST = "manifest.json"
#: bytes per shard, kept in memory while it is filled: 32 rows of 32x256x256 uint8, fewer of a larger geometry
SHARD_BYTES = 2**26
#: most rows per shard: the number of volumes that a killed job repeats at most
MOST_ROWS = 32


class StaleCacheError(ImagingError):
    """A source changed after it was cached."""


@dataclass(frozen=True)
class Fingerprint:
    """State of a source file or folder at the time it was cached.

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
        """Return the fingerprint of a file or of all files in a folder."""
        digest = hashlib.sha256()
        files = _files(source)
        for file in files:
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        return cls(*_stat(files), sha256=digest.hexdigest(), reading=reading)

    def still_fits(self, source: Path) -> bool:
        """Return whether the source is unchanged, by size and time, or by content if only the time differs."""
        size, modified = _stat(_files(source))
        if size != self.size:
            return False
        return modified == self.modified or Fingerprint.of(source).sha256 == self.sha256


def reading_digest(options: Mapping[str, Any]) -> str:
    """Return a hash (16 hex digits) of the options of `read_volume`, or "" if there are none."""
    if not options:
        return ""
    return hashlib.sha256(json.dumps(dict(options), sort_keys=True).encode()).hexdigest()[:16]


def accepted_digests(options: Mapping[str, Any]) -> tuple[str, str]:
    """Return the digests of all options, and of those without `gaps`: a volume without gaps is the same under each rule."""
    return reading_digest(options), reading_digest({name: value for name, value in options.items() if name != "gaps"})


def key_of(source: PathLike, root: PathLike | None, salt: str = "") -> str:
    """Return the cache key of a source: a salted hash of its path below `root`, or of its absolute path if it is elsewhere.

    A file has the same key below a folder and below a URL.
    """
    if isinstance(source, RemotePath):
        inside = below(source, root) if root is not None else None
        return hashlib.sha256((salt + (inside or source)).encode()).hexdigest()[:32]
    path = Path(source).resolve()
    if root is not None and path.is_relative_to(base := Path(root).resolve()):
        path = path.relative_to(base)
    return hashlib.sha256((salt + path.as_posix()).encode()).hexdigest()[:32]


class CacheWriter:
    """Writer that appends arrays to a cache folder and resumes an interrupted one after its last complete shard.

    Args:
        folder: created if missing, readable by its user only.
        geometry: geometry that prepared the arrays.
        shard_size: rows per shard; default: `SHARD_BYTES`, at most `MOST_ROWS`.

    Attributes:
        salt: of `key_of`; random for a new cache.

    Raises:
        GeometryError: if the folder contains a cache of another geometry.
        BusyError: if another process is writing to the folder.
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
        private_folder(self.folder)
        self._lock = OutputLock(self.folder, folder=True)
        if (self.folder / MANIFEST).exists():
            manifest = _read_manifest(self.folder)
            geometry.check_same(manifest["geometry_hash"], f"The cache {self.folder}")
            self.salt = str(manifest.get("salt", ""))
            self._continue()
        else:
            self.salt = secrets.token_hex(16)
            self._write_manifest({})

    def add(self, key: str, array: np.ndarray, fingerprint: Fingerprint) -> None:
        """Append one array (C, D, H, W) of the geometry's dtype; a repeated key replaces its earlier row."""
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
        """Write the rows of the unfinished shard to disk."""
        if not self._keys:
            return
        name = self.folder / f"shard-{self._shard:05d}"
        with atomic(name.with_suffix(".npy")) as temporary:
            np.save(temporary, self._rows[: len(self._keys)])
        # The list of keys is written last: a shard without it is incomplete and is written again.
        write_json(
            name.with_suffix(".json"), [{"key": key, **asdict(self.known[key])} for key in self._keys], indent=None
        )

    def close(self, facts: Mapping[str, Any] | None = None) -> None:
        """Write the unfinished shard, and the manifest with `facts` about the job."""
        self.flush()
        self._write_manifest(dict(facts or {}))
        self._lock.release()

    def _write_manifest(self, facts: dict[str, Any]) -> None:
        write_json(
            self.folder / MANIFEST,
            {
                "format": FORMAT,
                "salt": self.salt,
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
            if len(rows) < self.shard_size:  # only the last shard can be short; it is filled up
                self._shard, self._keys = number, keys
                # A job killed between writing the two files of a shard leaves rows without keys; they are prepared again.
                self._rows[: len(keys)] = _load_shard(self.folder, number)[: len(keys)]


class PreparedVolumes(ABC):
    """Prepared tensors by the path of their source; base of the readers.

    Attributes:
        name: folder or URL, for messages.
        geometry: that prepared the tensors.
        root: folder or URL to which the sources' paths are relative (the volume root of the data file).
        salt: of `key_of`.
        fingerprints: key -> state of the source when it was prepared.
    """

    name: PathLike
    geometry: Geometry
    root: PathLike | None
    salt: str
    fingerprints: dict[str, Fingerprint]

    def __init__(self) -> None:
        self._fresh: set[str] = set()
        self._keys: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.fingerprints)

    def __contains__(self, key: object) -> bool:
        return key in self.fingerprints

    @abstractmethod
    def __getitem__(self, key: str) -> np.ndarray:
        """Return the array (C, D, H, W) of a key."""

    def read_ahead(self, source: PathLike) -> bool:
        """Fetch the tensor of a source into the local cache if it is in an object store; False if there is none."""
        return key_of(source, self.root, self.salt) in self

    def tensor(self, source: PathLike, options: Mapping[str, Any] | None = None) -> torch.Tensor | None:
        """Return a copy of the prepared tensor (C, D, H, W) of a source, or None if it is not there.

        Args:
            source: path of the volume.
            options: arguments of `read_volume` that the source must have been read with; None accepts any.

        The source is compared with its fingerprint once per reader. A source that does not exist on this machine, or is in an
        object store, is not compared.

        Raises:
            StaleCacheError: if the source has changed since it was cached, or was read with other options.
        """
        key = self._keys.get(str(source)) or key_of(source, self.root, self.salt)
        if key not in self.fingerprints:
            return None
        if options and self.fingerprints[key].reading not in accepted_digests(options):
            raise StaleCacheError(
                f"{source} was cached in {self.name} with other reading options than the record's. Run `medmvl data cache` "
                "again."
            )
        if key not in self._fresh:
            path = Path(source)
            if not isinstance(source, RemotePath) and path.exists() and not self.fingerprints[key].still_fits(path):
                raise StaleCacheError(
                    f"{path} has changed since it was cached in {self.name}. Run `medmvl data cache` again."
                )
            self._fresh.add(key)
            self._keys[str(source)] = key
        return torch.from_numpy(np.array(self[key]))


def checked_geometry(manifest: Mapping[str, Any], name: PathLike, wanted: Geometry | None) -> Geometry:
    """Return the geometry that a manifest describes.

    Args:
        manifest: with `geometry` and `geometry_hash`.
        name: of the cache, for messages.
        wanted: the model's geometry, which must match; None: accept any geometry.

    Raises:
        GeometryError: with both hashes, if another geometry made the cache, or its description means another one today; if
            there is no description.
    """
    if not isinstance(manifest.get("geometry"), dict) or "geometry_hash" not in manifest:
        raise GeometryError(f"The manifest of {name} describes no geometry. Create the cache again.")
    with naming(name):
        made_by = Geometry.from_dict(manifest["geometry"])
    if made_by.hash != manifest["geometry_hash"]:
        raise GeometryError(
            f"The cache {name} was made with geometry {manifest['geometry_hash']}; its description now gives "
            f"{made_by.hash}. Its meaning has changed: create the cache again."
        )
    if wanted is not None:
        wanted.check_same(made_by.hash, f"The cache {name}")
    return made_by


class CacheReader(PreparedVolumes):
    """Reader of a cache folder through memory maps; may be passed to worker processes.

    Args:
        folder: created by `medmvl data cache`.
        geometry: the model's geometry, which must match; None: accept any geometry.
        root: folder to which the sources' paths are relative (the volume root of the data file); one per cache.

    Raises:
        GeometryError: with both hashes, if the cache was made with another geometry.
        ImagingError: if the folder is not a cache, or is damaged.
    """

    def __init__(self, folder: PathLike, geometry: Geometry | None = None, root: PathLike | None = None) -> None:
        super().__init__()
        self.folder = existing_folder(folder, "cache")
        self.name, self.root = self.folder, root
        manifest = _read_manifest(self.folder)
        self.salt = str(manifest.get("salt", ""))  # caches of earlier versions have none
        self.geometry = checked_geometry(manifest, self.folder, geometry)
        self._locations: dict[str, tuple[int, int]] = {}
        self.fingerprints = {}
        for number, rows in enumerate(_shards(self.folder)):
            for index, row in enumerate(rows):
                key = row.pop("key")
                self._locations[key], self.fingerprints[key] = (number, index), Fingerprint(**row)
        self._shape = (self.geometry.channels, *self.geometry.size)
        self._arrays: dict[int, np.ndarray] = {}

    def __getitem__(self, key: str) -> np.ndarray:
        """Return the array (C, D, H, W) of a key as a read-only memory map."""
        number, index = self._locations[key]
        if number not in self._arrays:
            self._arrays[number] = _load_shard(self.folder, number)
        if index >= len(self._arrays[number]) or self._arrays[number].shape[1:] != self._shape:
            raise _damaged(_shard_name(self.folder, number))
        return self._arrays[number][index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a cache folder, or raise an ImagingError if it is not one."""
    manifest = read_json(folder / MANIFEST)
    stated = isinstance(manifest, dict) and isinstance(manifest.get("geometry"), dict)
    if not stated or manifest.get("format") != FORMAT or not isinstance(manifest.get("geometry_hash"), str):
        raise ImagingError(f"{folder / MANIFEST} is not the manifest of a cache of format {FORMAT}.")
    return manifest


def _shards(folder: Path) -> list[list[dict[str, Any]]]:
    """Return the rows of each complete shard in order.

    Raises:
        ImagingError: if a shard is missing or its list of keys is damaged.
    """
    shards = []
    for number in range(len(list(folder.glob("shard-*.json")))):
        listing = _shard_name(folder, number).with_suffix(".json")
        if not listing.exists() or not _shard_name(folder, number).exists():
            raise ImagingError(f"The cache {folder} lacks shard {number}. Delete the folder and create it again.")
        try:
            rows = read_json(listing)
        except DataError as error:
            raise _damaged(listing) from error
        if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
            raise _damaged(listing)
        shards.append(rows)
    return shards


def _is_row(row: object) -> bool:
    """Return whether a JSON value is a key with the fingerprint of its source."""
    if not isinstance(row, dict) or not {"key", "size", "modified", "sha256"} <= set(row):
        return False
    kinds = {"key": str, "size": int, "modified": int, "sha256": str, "reading": str}
    return all(name in kinds and isinstance(value, kinds[name]) for name, value in row.items())


def _load_shard(folder: Path, number: int) -> np.ndarray:
    """Return the array (n, C, D, H, W) of a shard as a read-only memory map, or raise if it is damaged."""
    path = _shard_name(folder, number)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy parses headers as Python source and raises any type
        raise _damaged(path) from error


def _damaged(path: Path) -> ImagingError:
    return ImagingError(
        f"{path} is damaged. Delete the shard (.npy and .json) and all later ones, and run `medmvl data cache` again."
    )


def _shard_name(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npy"


def _files(source: Path) -> list[Path]:
    return sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]


def _stat(files: list[Path]) -> tuple[int, int]:
    stats = [file.stat() for file in files]
    return sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
