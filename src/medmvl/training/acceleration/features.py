"""Feature cache: frozen encoders run once before the stage, and their stored features replace the pixels in every step.

Before that it is measured whether training would compute the same features; those that depend on the rest of the batch are not
stored. If the connector's pooling has no weights (such as an average over slices), its result is stored, which is smaller.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmvl.data.mixture import Mixture
from medmvl.data.read_options import reading_of
from medmvl.data.sample import Sample
from medmvl.errors import DataError, RecipeError
from medmvl.files import PathLike
from medmvl.imaging.feature_store import FeatureStore, weights_hash
from medmvl.imaging.tar_shards import read_set_manifest
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.tower import Tower
from medmvl.models.visual_inputs import FEATURE_KEYS, PIXEL_KEYS
from medmvl.processing import MedMVLProcessor
from medmvl.progress_bar import progress_bar
from medmvl.remote import RemotePath, as_root, content_state, join
from medmvl.training.acceleration.exactness import why_not_stored

logger = logging.getLogger(__name__)

#: Images or volumes per forward pass while the store is filled.
BATCH = {"image": 32, "volume": 2}


@dataclass(frozen=True)
class StoredMedia:
    """Encoder of samples with stored features in place of pixels.

    Attributes:
        processor: encodes the text, and images or volumes of modalities that are not stored.
        stores: modality -> features of its frozen encoder.
    """

    processor: MedMVLProcessor
    stores: dict[str, FeatureStore]

    def encode(self, sample: Sample) -> dict[str, Tensor]:
        """Return `input_ids`, `labels` (T,) and `image_features` / `volume_features` (n, tokens, width) or pixels."""
        ids, labels = self.processor.encode_text(sample)
        encoded = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        for modality, paths in _media(sample).items():
            if not paths:
                continue
            if modality in self.stores:
                encoded[FEATURE_KEYS[modality]] = torch.stack([self._features(modality, path) for path in paths])
            else:
                prepare = _preparer(self.processor, modality)
                encoded[PIXEL_KEYS[modality]] = torch.stack([prepare(path) for path in paths])
        return encoded

    def read_ahead(self, sample: Sample) -> Sample:
        """Fetch the stored features of a sample into the local cache; return the sample without their files."""
        for modality, paths in _media(sample).items():
            if modality in self.stores:
                for path in paths:
                    self.stores[modality].read_ahead(media_key(path))
        left: dict[str, Any] = {f"{modality}s": () for modality in self.stores}
        return replace(sample, **left)

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
                f"The stored features of {path} are missing, or it has changed since. The same command with --resume computes "
                "them again and continues."
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
    shards: str | None = None,
) -> StoredMedia:
    """Run every frozen encoder over all images and volumes of a mixture that are not stored yet.

    A complete store is marked as such, so that a resumed stage does not read the records again.

    Args:
        model: on its device; encoders with a trainable weight are skipped.
        folder: of the stores, one per modality and encoder.
        rank, world: this process among all; each stores the features of its share of the records.
        autocast: a context factory under which the encoder runs, as in training.
        shards: folder or URL of features packed by `medmvl data pack`; only what they lack is computed.

    Raises:
        RecipeError: if no encoder of the model is frozen.
        DataError: if an image or volume cannot be read.
    """
    stores: dict[str, FeatureStore] = {}
    frozen = [name for name in model.towers if not _trains(model.tower(name).encoder)]
    if not frozen:
        raise RecipeError("feature_cache is set, but every encoder trains in this stage. Freeze one or unset it.")
    for modality in frozen:
        tower = model.tower(modality)
        whole = model.config.tower(modality).to_dict()
        settings = {"encoder": whole["encoder"]}
        if tower.pools_without_weights:
            settings["pooling"] = whole["connector"]["pooling"]
        made_by = weights_hash(tower.encoder.state_dict(), settings), preparation_hash(processor, modality)
        name = f"{modality}-{'-'.join(made_by)}"
        stores[modality] = FeatureStore(folder / name, *made_by, shards=_packed(shards, name))
        share = f"{mixture.fingerprint}, {rank} of {world}"
        if stores[modality].holds_all_of(share):
            continue
        numbers = reversed(range(rank, len(mixture), world))  # of each path the first record stays
        users = {path: number for number in numbers for path in _media(mixture[number])[modality]}
        wanted = sorted(users)
        missing = [path for path in wanted if media_key(path) not in stores[modality]]
        # Features that are stored were checked when they were made.
        reason = _why_not_stored(tower, processor, mixture, modality, model.device, autocast) if missing else None
        if reason is not None:
            del stores[modality]
            if rank == 0:
                logger.warning("This stage trains without stored features of %ss: %s.", modality, reason)
            continue
        prepare = partial(_prepared, _preparer(processor, modality), mixture, users)
        _fill(stores[modality], tower, missing, prepare, modality, model.device, autocast)
        stores[modality].note_all_of(share)
    return StoredMedia(processor, stores)


def _trains(encoder: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in encoder.parameters())


def _why_not_stored(
    tower: Tower, processor: MedMVLProcessor, mixture: Mixture, modality: str, device: torch.device, autocast: Any
) -> str | None:
    """Return why a tower's features must not be stored, measured on the first image or volume of a mixture and its negative."""
    for number in range(len(mixture)):
        for path in _media(mixture[number])[modality]:
            pixels = _preparer(processor, modality)(path)
            return why_not_stored(tower, torch.stack([pixels, -pixels]).to(device), autocast)
    return None


def _packed(shards: str | None, name: str) -> PathLike | None:
    """Return the shards of a store below the place that the recipe names, or None if there are none."""
    if shards is None:
        return None
    root = as_root(shards)
    place = join(root, name) if isinstance(root, RemotePath) else root / name
    return place if read_set_manifest(place) is not None else None


def _fill(
    store: FeatureStore,
    tower: Tower,
    paths: list[str],
    prepare: Callable[[str], Tensor],
    modality: str,
    device: torch.device,
    autocast: Any,
) -> None:
    with progress_bar(f"features of {modality}s", len(paths)) as bar, torch.no_grad():
        bar.update(0)
        for batch in _batches(paths, BATCH[modality]):
            pixels = torch.stack([prepare(path) for path in batch]).to(device)
            if autocast is None:
                features = tower.encode_pooled(pixels)
            else:
                with autocast():
                    features = tower.encode_pooled(pixels)
            for path, one in zip(batch, features, strict=True):
                store.put(media_key(path), one)
            bar.update(bar.done + len(batch))


def _prepared(prepare: Callable[[str], Tensor], mixture: Mixture, users: Mapping[str, int], path: str) -> Tensor:
    """Return the prepared pixels of a file; an error names the first record that uses it."""
    with mixture.naming(users[path]):
        return prepare(path)


def _batches(paths: list[str], size: int) -> Iterator[list[str]]:
    iterator = iter(paths)
    while batch := list(islice(iterator, size)):
        yield batch


def _media(sample: Sample) -> dict[str, tuple[str, ...]]:
    return {"image": sample.images, "volume": sample.volumes}


def _preparer(processor: MedMVLProcessor, modality: str) -> Any:
    return processor.image_processor if modality == "image" else processor.volume_processor


def media_key(path: str) -> str:
    """Return the key of a file's features: path, size, time and reading options, so that a change is noticed."""
    options = reading_of(path).given()
    if isinstance(path, RemotePath):
        return json.dumps([content_state(RemotePath(path)), options])
    file = Path(path)
    files = sorted(file.rglob("*")) if file.is_dir() else [file]
    state = [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in files]
    return json.dumps([state, options] if options else state)


def preparation_hash(processor: MedMVLProcessor, modality: str) -> str:
    """Return a hash of the preprocessing before the encoder."""
    settings = processor.image if modality == "image" else processor.volume
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
