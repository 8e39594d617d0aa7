"""Features of a frozen encoder, computed once: a folder of small safetensors files, keyed by what made them.

The key of a store is the hash of the encoder's weights and settings together with the hash of what prepared its input
(geometry, image processor, normalisation). If either changes, another folder is used; a mismatch is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medmvl.errors import DataError
from medmvl.files import PathLike, atomic, read_json, write_json

_NAME = "features"


def weights_hash(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any] | None = None) -> str:
    """Return 16 hex digits over the names, types, shapes and bytes of `state` and over `settings` (JSON values).

    Args:
        state: an encoder's `state_dict()`; for a pooling without weights, also nothing.
        settings: what shapes the features beside the weights: the encoder's config, layer, pooling.
    """
    digest = hashlib.sha256(json.dumps(dict(settings or {}), sort_keys=True, default=str).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:16]


class FeatureStore:
    """Tensors of one encoder by item key.

    Args:
        folder: made if absent.
        encoder: `weights_hash` of the encoder.
        preparation: hash of what prepared its input, such as `Geometry.hash`.

    Raises:
        DataError: with both pairs of hashes, if the folder holds features of another encoder or preparation.
    """

    def __init__(self, folder: PathLike, encoder: str, preparation: str) -> None:
        self.folder = Path(folder)
        made_by = {"encoder": encoder, "preparation": preparation}
        manifest = self.folder / "manifest.json"
        if manifest.exists():
            stored = read_json(manifest)
            if stored != made_by:
                raise DataError(
                    f"The features in {self.folder} were made with {stored}, now {made_by} is wanted. "
                    "Use another folder, or delete this one."
                )
        else:
            write_json(manifest, made_by)

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("??/*.safetensors"))

    def get(self, key: str) -> torch.Tensor | None:
        """Return the tensor of an item as it was stored (shape and dtype), None if it is not here.

        Raises:
            DataError: if its file is damaged.
        """
        path = self._path(key)
        if not path.exists():
            return None
        try:
            return load_file(path)[_NAME]
        except (SafetensorError, KeyError, OSError) as error:
            raise DataError(
                f"{path} is damaged: {error}. Delete it; the same command with --resume makes it again."
            ) from error

    def put(self, key: str, features: torch.Tensor) -> None:
        """Store the tensor of an item, whole or not at all; two writers of one key do no harm."""
        with atomic(self._path(key)) as temporary:
            save_file({_NAME: features.detach().cpu().contiguous()}, temporary)

    def holds_all_of(self, collection: str) -> bool:
        """Say whether `note_all_of` was called for a collection of items: none of them has to be looked for."""
        return self._note(collection).exists()

    def note_all_of(self, collection: str) -> None:
        """Note that the features of every item of a collection are here."""
        write_json(self._note(collection), {"collection": collection})

    def forget_collections(self) -> None:
        """Take all such notes back, after an item was missed."""
        for note in self.folder.glob("all-*.json"):
            note.unlink(missing_ok=True)

    def _note(self, collection: str) -> Path:
        return self.folder / f"all-{hashlib.sha256(collection.encode()).hexdigest()[:16]}.json"

    def _path(self, key: str) -> Path:
        """Keys are hashed: they may be paths, and paths may name a patient."""
        name = hashlib.sha256(key.encode()).hexdigest()[:40]
        return self.folder / name[:2] / f"{name}.safetensors"
