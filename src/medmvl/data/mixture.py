"""Several data sets as one endless, reproducible stream of records.

The stream has no state: which record stands at position p follows from the seed alone. A run that is resumed, or
resumed on another number of devices, therefore continues with the very next record.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import numpy as np

from medmvl.data.dataset import SampleDataset
from medmvl.data.sample import Sample
from medmvl.errors import DataError, did_you_mean


class Mixture:
    """Named data sets with weights, drawn without replacement.

    Each data set is traversed in separate random permutations; an epoch of the mixture takes the next
    `round(weight * len)` records of each and shuffles them together. Weight 0.5 thus shows the other half in the
    next epoch, weight 2 shows every record twice.

    Args:
        datasets: name -> data set.
        weights: name -> weight; default 1 each.
        temperature: if given, an epoch has as many records as all data sets together, drawn in proportion to
            `len ** (1 / temperature)` (XLM, arXiv 1901.07291); weights then multiply these shares.
        seed: of the order.

    Raises:
        DataError: if there is nothing to draw from, or a weight names no data set.
    """

    def __init__(
        self,
        datasets: Mapping[str, SampleDataset],
        weights: Mapping[str, float] | None = None,
        temperature: float | None = None,
        seed: int = 0,
    ) -> None:
        weights = dict(weights or {})
        for name in weights:
            if name not in datasets:
                raise DataError(f"The mixture weighs an unknown data set {name!r}. {did_you_mean(name, datasets)}")
        empty = [name for name, dataset in datasets.items() if len(dataset) == 0]
        if empty or not datasets:
            raise DataError(f"The data set {empty[0]!r} holds no record." if empty else "The mixture has no data set.")
        self.names = list(datasets)
        self._datasets = list(datasets.values())
        self._seed = seed
        sizes = np.array([len(dataset) for dataset in self._datasets])
        shares = np.array([weights.get(name, 1.0) for name in self.names])
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._draws = _draws(sizes, shares, temperature)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        """Number of records, each counted once."""
        return int(self._starts[-1])

    @property
    def epoch_size(self) -> int:
        """Number of records that an epoch shows."""
        return int(self._draws.sum())

    @property
    def fingerprint(self) -> str:
        """Hex digits that change with the records of any data set, not with weights, temperature or seed."""
        return "-".join(dataset.fingerprint for dataset in self._datasets)

    def draws(self) -> dict[str, int]:
        """Return data set -> records per epoch."""
        return {name: int(count) for name, count in zip(self.names, self._draws, strict=True)}

    def stream(self, start: int, count: int) -> np.ndarray:
        """Return (count,) int64 record numbers: positions start, start + 1, ... of the endless stream."""
        return self._take(0, start, count)

    def passes(self, start: int, count: int) -> np.ndarray:
        """Return (count,) int64: for each record of `stream(start, count)`, which pass over its data set shows it.

        Every pass shows every record of a data set once, so (record, pass) never comes twice.
        """
        return self._take(1, start, count)

    def _take(self, part: int, start: int, count: int) -> np.ndarray:
        pieces = []
        while count > 0:
            epoch, offset = divmod(start, self.epoch_size)
            piece = self._epoch(epoch)[part][offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return order and passes of an epoch; the last two are kept, since a step may reach into the next one."""
        if epoch not in self._epochs:
            starts = [epoch * int(count) for count in self._draws]
            walks = [self._walk(index, start, int(self._draws[index])) for index, start in enumerate(starts)]
            # Each walk shows every record of its data set once before it shows one again.
            rounds = [
                np.arange(start, start + len(walk)) // len(dataset)
                for start, walk, dataset in zip(starts, walks, self._datasets, strict=True)
            ]
            order = np.random.default_rng([self._seed, 0, epoch]).permutation(sum(len(walk) for walk in walks))
            self._epochs = {key: value for key, value in self._epochs.items() if abs(key - epoch) <= 1}
            self._epochs[epoch] = np.concatenate(walks)[order], np.concatenate(rounds)[order]
        return self._epochs[epoch]

    def _walk(self, index: int, start: int, count: int) -> np.ndarray:
        """Return positions start .. start + count of data set `index`'s own stream of permutations."""
        size = len(self._datasets[index])
        rounds = range(start // size, (start + count - 1) // size + 1)
        walk = [np.random.default_rng([self._seed, 1 + index, number]).permutation(size) for number in rounds]
        offset = start - rounds[0] * size
        return np.concatenate(walk)[offset : offset + count] + self._starts[index]

    def times_per_epoch(self, number: int) -> float:
        """Return how often record `number` is seen per epoch, on average."""
        index = int(np.searchsorted(self._starts, number, side="right")) - 1
        return float(self._draws[index]) / len(self._datasets[index])

    def locate(self, number: int) -> tuple[SampleDataset, int]:
        """Return the data set of record `number` and the record's index in it."""
        index = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._datasets[index], int(number - self._starts[index])

    def sample(self, number: int) -> Sample:
        """Return record `number` with its paths as written; reads no media."""
        dataset, index = self.locate(number)
        return dataset.sample(index)

    def naming(self, number: int) -> AbstractContextManager[None]:
        """Return a context in which our errors name data set, place and id of record `number`; see `SampleDataset.naming`."""
        dataset, index = self.locate(number)
        return dataset.naming(index)

    def __getitem__(self, number: int) -> Sample:
        """Return record `number` with absolute, checked paths."""
        dataset, index = self.locate(number)
        return dataset[index]


def _draws(sizes: np.ndarray, shares: np.ndarray, temperature: float | None) -> np.ndarray:
    """Return the number of records of each data set per epoch; at least one of each."""
    if temperature is None:
        wanted = sizes * shares
    else:
        wanted = sizes ** (1.0 / temperature) * shares
        wanted = wanted / wanted.sum() * sizes.sum()
    return np.maximum(np.rint(wanted), 1).astype(np.int64)
