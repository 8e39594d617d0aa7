"""On-disk store for the features of a frozen encoder: a folder of small safetensors files.

A store is identified by the hash of the encoder's weights and settings, and by the hash of its input preparation
(geometry, image processor, normalization). If either changes, another folder is used; a mismatch is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file

from medmvl.errors import DataError
from medmvl.files import (
    OutputLock,
    PathLike,
    atomic,
    existing_file,
    existing_folder,
    private_folder,
    read_json,
    write_json,
)
from medmvl.imaging.cache import SHARD_BYTES
from medmvl.imaging.tar_shards import Item, TarShards, begin_set, write_set, write_shard
from medmvl.progress_bar import track
from medmvl.remote import RemotePath, as_root

_NAME, SUFFIX, KIND = "features", "safetensors", "features"


def weights_hash(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any] | None = None) -> str:
    """Return a hash (16 hex digits) of the tensors in `state` and of `settings`.

    Args:
        state: an encoder's `state_dict()`, tensors of any shape; empty for a pooling without weights.
        settings: other settings that determine the features (config, layer, pooling), as JSON values.
    """
    digest = hashlib.sha256(json.dumps(dict(settings or {}), sort_keys=True, default=str).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:16]


class FeatureStore:
    """Features of one encoder by item key.

    Args:
        folder: created if missing, readable by its user only.
        encoder: `weights_hash` of the encoder.
        preparation: hash of the input preparation, such as `Geometry.hash`.
        shards: folder or URL of shards written by `pack_features`; features in them need not be in the folder.

    Raises:
        DataError: if the folder or the shards contain features of another encoder or preparation; states both pairs of hashes.
    """

    def __init__(self, folder: PathLike, encoder: str, preparation: str, shards: PathLike | None = None) -> None:
        self.folder = Path(folder)
        self._shards = None if shards is None else _open_shards(shards, encoder, preparation)
        made_by = {"encoder": encoder, "preparation": preparation}
        manifest = self.folder / "manifest.json"
        if manifest.exists():
            stored = read_json(manifest)
            if stored != made_by:
                raise DataError(
                    f"The features in {self.folder} were made with {str(stored)[:200]}, now {made_by} is wanted. "
                    "Use another folder, or delete this one."
                )
        else:
            private_folder(self.folder)  # images can be reconstructed from features to some degree
            write_json(manifest, made_by)

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists() or self._in_shards(key)

    def _in_shards(self, key: str) -> bool:
        return self._shards is not None and _name_of(key) in self._shards.rows

    def read_ahead(self, key: str) -> None:
        """Fetch the features of an item into the local cache, if they are in shards in an object store."""
        if self._shards is not None and self._in_shards(key):
            self._shards.read_ahead(_name_of(key))

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("??/*.safetensors"))

    def get(self, key: str) -> torch.Tensor | None:
        """Return the tensor of an item with its stored shape and dtype, or None if it is not in the store.

        Raises:
            DataError: if its file is damaged.
        """
        path = self._path(key)
        if not path.exists():
            if self._shards is None or not self._in_shards(key):
                return None
            return _loaded(self._shards.read(_name_of(key)), self._shards.source)
        try:
            return load_file(path)[_NAME]
        except (SafetensorError, KeyError, OSError) as error:
            raise DataError(
                f"{path} is damaged: {error}. Delete it; the same command with --resume makes it again."
            ) from error

    def put(self, key: str, features: torch.Tensor) -> None:
        """Store the features of an item, a tensor of any shape, atomically. Two writers of one key do no harm."""
        with atomic(self._path(key)) as temporary:
            save_file({_NAME: features.detach().cpu().contiguous()}, temporary)

    def holds_all_of(self, collection: str) -> bool:
        """Return whether every item of a collection is known to be stored (`note_all_of` was called)."""
        return self._note(collection).exists()

    def note_all_of(self, collection: str) -> None:
        """Record that the features of every item of a collection are stored."""
        write_json(self._note(collection), {"collection": collection})

    def forget_collections(self) -> None:
        """Delete all records made by `note_all_of`, after an item was found missing."""
        for note in self.folder.glob("all-*.json"):
            note.unlink(missing_ok=True)

    def _note(self, collection: str) -> Path:
        return self.folder / f"all-{hashlib.sha256(collection.encode()).hexdigest()[:16]}.json"

    def _path(self, key: str) -> Path:
        name = _name_of(key)
        return self.folder / name[:2] / f"{name}.{SUFFIX}"


def _name_of(key: str) -> str:
    """Return the name of an item. Keys are hashed, because they may be paths that identify a patient."""
    return hashlib.sha256(key.encode()).hexdigest()[:40]


def _loaded(data: bytes, source: PathLike) -> torch.Tensor:
    try:
        return load(data)[_NAME]
    except (SafetensorError, KeyError) as error:
        raise DataError(f"The shards in {source} are damaged: {error}. Pack the features again.") from error


def _open_shards(place: PathLike, encoder: str, preparation: str) -> TarShards:
    """Open shards of features.

    Raises:
        DataError: if they hold something else, or features of another encoder or preparation.
    """
    shards = TarShards(place)
    made_by, wanted = shards.manifest.get("made_by"), {"encoder": encoder, "preparation": preparation}
    if shards.manifest.get("kind") != KIND or made_by != wanted:
        raise DataError(f"The shards in {place} were made with {made_by}, now {wanted} is wanted. Use other shards.")
    return shards


def _item_of(file: Path) -> Item:
    return file.stem, file.read_bytes(), {}


def pack_features(store: PathLike, target: PathLike, shard_bytes: int = SHARD_BYTES) -> int:
    """Write the features of a store into tar shards in a folder or an object store; return their number.

    The files of the store stay. Equal stores give equal shards.

    Raises:
        DataError: if the folder is not a store.
        BusyError: if another process writes into the folder `target`.
    """
    folder = existing_folder(store, "feature store")
    made_by = read_json(existing_file(folder / "manifest.json", "manifest of a feature store"))
    if not isinstance(made_by, dict) or set(made_by) != {"encoder", "preparation"}:
        raise DataError(f"{folder} is not a feature store.")
    place = as_root(target)
    with nullcontext() if isinstance(place, RemotePath) else OutputLock(place, folder=True):
        return _pack(folder, place, made_by, shard_bytes)


def _pack(folder: Path, target: PathLike, made_by: dict[str, Any], shard_bytes: int) -> int:
    begin_set(target, {"kind": KIND, "made_by": made_by})
    indices: list[dict[str, Any]] = []
    waiting: list[Path] = []
    size = count = 0
    for file in track([*sorted(folder.glob(f"??/*.{SUFFIX}")), None], "features"):
        if waiting and (file is None or size + file.stat().st_size > shard_bytes):
            indices.append(write_shard(target, len(indices), map(_item_of, waiting), SUFFIX))
            waiting, size = [], 0
        if file is not None:
            waiting.append(file)
            size, count = size + file.stat().st_size, count + 1
    write_set(target, indices, {"kind": KIND, "made_by": made_by, "suffix": SUFFIX})
    return count
