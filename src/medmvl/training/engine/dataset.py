"""The data set that a stage trains on: record numbers become encoded samples."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from torch import Tensor
from torch.utils.data import Dataset

from medmvl.data.mixture import Mixture
from medmvl.data.sample import Sample
from medmvl.errors import MedMVLError
from medmvl.training.augmentation import Augmenter
from medmvl.training.engine.batch import EncodedSample


class TrainingDataset(Dataset[EncodedSample]):
    """Encodes records of a mixture. A record that cannot be used is returned with its error instead of raising it.

    Args:
        mixture: the records.
        encode: sample -> tensors.
        cache_bytes: memory for encoded samples, per data loader process; useful for small data sets that are seen often.
        augment: changes encoded samples, differently in each epoch; cached samples stay unchanged.
        read_ahead: fetches the files of a sample into the local cache, if any are in an object store; else None.
    """

    def __init__(
        self,
        mixture: Mixture,
        encode: Callable[[Sample], dict[str, Tensor]],
        cache_bytes: int = 0,
        augment: Augmenter | None = None,
        read_ahead: Callable[[Sample], None] | None = None,
    ) -> None:
        self._mixture, self._encode, self._augment = mixture, encode, augment
        self._free_bytes, self._read_ahead = cache_bytes, read_ahead
        self._cached: dict[int, EncodedSample] = {}

    def __len__(self) -> int:
        return len(self._mixture)

    @property
    def is_remote(self) -> bool:
        """Whether files are in an object store."""
        return self._read_ahead is not None

    def read_ahead(self, number: int) -> None:
        """Fetch the files of a record into the local cache. A record that cannot be used is left to `__getitem__`."""
        if self._read_ahead is not None and number not in self._cached:
            with suppress(MedMVLError):
                self._read_ahead(self._mixture[number])

    def __getitem__(self, number: int) -> EncodedSample:
        encoded = self._encoded(number)
        if self._augment is None or encoded.error is not None:
            return encoded
        inputs = self._augment(encoded.inputs, self._mixture.sample(number), getattr(number, "epoch", 0))
        return EncodedSample(encoded.id, inputs)

    def _encoded(self, number: int) -> EncodedSample:
        if number in self._cached:
            return self._cached[number]
        try:
            with self._mixture.naming(number):
                sample = self._mixture[number]
                encoded = EncodedSample(sample.id, self._encode(sample))
        except MedMVLError as error:
            return EncodedSample("", error=error)
        size = sum(value.nbytes for value in encoded.inputs.values())
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._cached[number] = encoded
        return encoded
