"""Prepared volumes in tar shards: writing a shard, and the reader."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from medmvl.errors import DataError, ImagingError
from medmvl.files import PathLike
from medmvl.imaging.cache import CacheReader, Fingerprint, PreparedVolumes, checked_geometry, key_of
from medmvl.imaging.preprocessing.geometry import Geometry
from medmvl.imaging.tar_shards import TarShards, begin_set, read_set_manifest, write_set, write_shard
from medmvl.remote import RemotePath, as_root

SUFFIX, KIND = "npy", "volumes"


def write_volume_shard(
    target: PathLike, number: int, rows: Iterable[tuple[str, np.ndarray, Fingerprint]]
) -> dict[str, Any]:
    """Write a shard of prepared tensors (key, (C, D, H, W), state of the source) and return its index."""
    return write_shard(target, number, ((key, _npy(array), asdict(state)) for key, array, state in rows), SUFFIX)


def begin_volume_shards(target: PathLike, geometry: Geometry) -> str:
    """Return the salt of the keys of a set of shards, of an earlier, perhaps interrupted, job or a new random one.

    Raises:
        GeometryError: if the folder or URL holds shards of another geometry.
    """
    earlier = read_set_manifest(target, finished=False)
    if earlier is not None:
        geometry.check_same(str(earlier["geometry_hash"]), f"The shards in {target}")
        return str(earlier["salt"])
    salt = secrets.token_hex(16)
    begin_set(target, {"salt": salt, "geometry_hash": geometry.hash})
    return salt


def write_volume_manifest(
    target: PathLike, geometry: Geometry, shards: list[dict[str, Any]], facts: Mapping[str, Any]
) -> None:
    """Write joint index and manifest of finished shards."""
    described = {"geometry": geometry.to_dict(), "geometry_hash": geometry.hash, "dtype": geometry.dtype}
    shape = [geometry.channels, *geometry.size]
    write_set(target, shards, {"kind": KIND, "suffix": SUFFIX, "shape": shape, **described, **facts})


def fingerprint_of(row: Mapping[str, Any]) -> Fingerprint:
    """Return the state of the source in a row of an index."""
    return Fingerprint(int(row["size"]), int(row["modified"]), str(row["sha256"]), str(row.get("reading", "")))


class ShardReader(PreparedVolumes):
    """Reader of prepared volumes in shards, in a folder or an object store; may be passed to worker processes.

    Args:
        source: folder or URL, written by `medmvl data cache --shards`.
        geometry: the model's geometry, which must match; None: accept any geometry.
        root: folder or URL to which the sources' paths are relative.

    Raises:
        GeometryError: with both hashes, if the shards were made with another geometry.
        DataError: if they are not finished, or hold something else.
    """

    def __init__(self, source: PathLike, geometry: Geometry | None = None, root: PathLike | None = None) -> None:
        super().__init__()
        self._shards = TarShards(source)
        self.name, self.root = self._shards.source, root
        self.salt = str(self._shards.manifest.get("salt", ""))
        if self._shards.manifest.get("kind") != KIND:
            raise DataError(f"The shards in {self.name} hold {self._shards.manifest.get('kind')}, not volumes.")
        self.geometry = checked_geometry(self._shards.manifest, self.name, geometry)
        try:
            self.fingerprints = {name: fingerprint_of(row) for name, (_, row) in self._shards.rows.items()}
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DataError(f"The index of the shards in {self.name} is damaged. Write them again.") from None

    def __getitem__(self, key: str) -> np.ndarray:
        """Return the array (C, D, H, W) of a key."""
        try:
            array = np.load(io.BytesIO(self._shards.read(key)), allow_pickle=False)
        except (ValueError, EOFError, MemoryError) as error:
            raise ImagingError(f"The shards in {self.name} are damaged. Write them again.") from error
        if array.shape != (self.geometry.channels, *self.geometry.size):
            raise ImagingError(f"The shards in {self.name} are damaged. Write them again.")
        return np.asarray(array)

    def read_ahead(self, source: PathLike) -> bool:
        """Fetch the tensor of a source into the local cache if it is in an object store; False if there is none."""
        key = key_of(source, self.root, self.salt)
        if key in self:
            self._shards.read_ahead(key)
        return key in self


def open_prepared(place: PathLike, geometry: Geometry | None, root: PathLike | None) -> PreparedVolumes:
    """Return the reader of a cache folder, or of shards in a folder or an object store.

    Raises:
        GeometryError: with both hashes, if another geometry made it.
        DataError: if there is neither.
    """
    found = as_root(place)
    if isinstance(found, RemotePath) or read_set_manifest(found) is not None:
        return ShardReader(found, geometry, root)
    return CacheReader(found, geometry, root)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
