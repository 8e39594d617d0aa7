"""Frozen encoders run once: their features are stored before the stage and stand in for the pixels in every step.

Behind a pooling without weights (an average over slices, say) its result is stored, which is that much smaller.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from medmvl.data.mixture import Mixture
from medmvl.data.sample import Sample
from medmvl.errors import DataError, RecipeError
from medmvl.imaging.feature_store import FeatureStore, weights_hash
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.tower import Tower
from medmvl.processing import MedMVLProcessor
from medmvl.processing.collate import PIXELS

#: Images or volumes that go through the encoder at once while the store is filled.
BATCH = {"image": 32, "volume": 2}


@dataclass(frozen=True)
class StoredMedia:
    """Encodes samples with stored features in place of pixels.

    Attributes:
        processor: encodes the text, and the media of modalities that are not stored.
        stores: modality -> features of its frozen encoder.
    """

    processor: MedMVLProcessor
    stores: dict[str, FeatureStore]

    def encode(self, sample: Sample) -> dict[str, Tensor]:
        """Return what `MedMVLProcessor.encode` does, with `image_features` / `volume_features` (n, tokens, width)."""
        ids, labels = self.processor.encode_text(sample)
        encoded = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        for modality, paths in _media(sample).items():
            if not paths:
                continue
            if modality in self.stores:
                encoded[f"{modality}_features"] = torch.stack([self._features(modality, path) for path in paths])
            else:
                prepare = _preparer(self.processor, modality)
                encoded[PIXELS[modality]] = torch.stack([prepare(path) for path in paths])
        return encoded

    def _features(self, modality: str, path: str) -> Tensor:
        store = self.stores[modality]
        try:
            features = store.get(media_key(path))
        except DataError:
            store.forget_collections()
            raise
        if features is None:
            store.forget_collections()
            raise RecipeError(
                f"The stored features of {path} are missing, or it has changed since. The same command with --resume makes "
                "them again and goes on."
            )
        return features


def store_features(
    model: MedMVLForConditionalGeneration,
    processor: MedMVLProcessor,
    mixture: Mixture,
    folder: Path,
    *,
    rank: int = 0,
    world: int = 1,
    autocast: Any = None,
    console: Console | None = None,
) -> StoredMedia:
    """Run every frozen encoder over all media of a mixture that are not stored yet.

    When that is done it is noted, so that a resumed stage does not look through the records again.

    Args:
        model: on its device; an encoder with a trainable weight is left alone.
        folder: where the stores go, one per modality and encoder.
        rank, world: this device's share of the work.
        autocast: a context factory under which the encoder runs, as in training.

    Raises:
        RecipeError: if no encoder of the model is frozen.
        DataError: if a medium cannot be read.
    """
    stores: dict[str, FeatureStore] = {}
    for modality, tower in model.towers.items():
        assert isinstance(tower, Tower)
        if any(parameter.requires_grad for parameter in tower.encoder.parameters()):
            continue
        whole = model.config.tower(modality).to_dict()
        settings = {"encoder": whole["encoder"]}
        if tower.pools_without_weights:
            settings["pooling"] = whole["connector"]["pooling"]
        made_by = weights_hash(tower.encoder.state_dict(), settings), preparation_hash(processor, modality)
        stores[modality] = FeatureStore(folder / f"{modality}-{'-'.join(made_by)}", *made_by)
        share = f"{mixture.fingerprint}, {rank} of {world}"
        if stores[modality].holds_all_of(share):
            continue
        wanted = sorted(
            {path for number in range(rank, len(mixture), world) for path in _media(mixture[number])[modality]}
        )
        missing = [path for path in wanted if media_key(path) not in stores[modality]]
        _fill(stores[modality], tower, missing, processor, modality, model.device, autocast, console)
        stores[modality].note_all_of(share)
    if not stores:
        raise RecipeError("feature_cache is set, but every encoder trains in this stage. Freeze one or unset it.")
    return StoredMedia(processor, stores)


def _fill(
    store: FeatureStore,
    tower: Tower,
    paths: list[str],
    processor: MedMVLProcessor,
    modality: str,
    device: torch.device,
    autocast: Any,
    console: Console | None,
) -> None:
    prepare = _preparer(processor, modality)
    with Progress(console=console or Console(stderr=True), transient=True) as progress, torch.no_grad():
        task = progress.add_task(f"features of {modality}s", total=len(paths))
        for batch in _batches(paths, BATCH[modality]):
            pixels = torch.stack([prepare(path) for path in batch]).to(device)
            if autocast is None:
                features = tower.encode_pooled(pixels)
            else:
                with autocast():
                    features = tower.encode_pooled(pixels)
            for path, one in zip(batch, features, strict=True):
                store.put(media_key(path), one)
            progress.advance(task, len(batch))


def _batches(paths: list[str], size: int) -> Iterator[list[str]]:
    iterator = iter(paths)
    while batch := list(islice(iterator, size)):
        yield batch


def _media(sample: Sample) -> dict[str, tuple[str, ...]]:
    return {"image": sample.images, "volume": sample.volumes}


def _preparer(processor: MedMVLProcessor, modality: str) -> Any:
    return processor.image_processor if modality == "image" else processor.volume_processor


def media_key(path: str) -> str:
    """Return what a medium's features are filed under: its path, size and time, so that a changed file is run again."""
    file = Path(path)
    files = sorted(file.rglob("*")) if file.is_dir() else [file]
    state = [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in files]
    return json.dumps(state)


def preparation_hash(processor: MedMVLProcessor, modality: str) -> str:
    """Return a hash of all that happens to a medium before the encoder sees it."""
    settings = processor.image if modality == "image" else processor.volume
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
