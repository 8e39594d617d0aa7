"""Records of each optimizer step, and their split into micro-batches and devices.

A step is `batch_size` consecutive records of the mixture's stream, whatever the number of devices or micro-batches.
Within a step, records of one kind and of similar length go into the same micro-batch, and every device gets about as
many tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch.utils.data import Sampler

from medmvl.data.mixture import Mixture
from medmvl.errors import RecipeError

#: Average length of a token in characters. It only balances micro-batches, so an estimate is enough.
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class BatchLayout:
    """Split of a step into micro-batches.

    Attributes:
        batch_size: records per step.
        world: number of devices.
        accumulation: micro-batches per device and step.
    """

    batch_size: int
    world: int = 1
    accumulation: int = 1

    @classmethod
    def of(cls, batch_size: int, micro_batch_size: int | None, world: int) -> BatchLayout:
        """Return the layout with the fewest micro-batches that `micro_batch_size` allows.

        Raises:
            RecipeError: if there are more devices than records in a step.
        """
        if batch_size < world:
            raise RecipeError(
                f"A step of {batch_size} records cannot feed {world} devices. Raise batch_size to at least {world}."
            )
        accumulation = math.ceil(math.ceil(batch_size / world) / (micro_batch_size or batch_size))
        while batch_size < world * accumulation:
            accumulation -= 1
        return cls(batch_size, world, accumulation)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step over all devices."""
        return self.world * self.accumulation


class SampleVisit(int):
    """A record number with the epoch of its data set in which the record is shown, counted from 0."""

    epoch: int

    def __new__(cls, number: int, epoch: int) -> SampleVisit:
        """Return the number with its epoch."""
        visit = super().__new__(cls, number)
        visit.epoch = epoch
        return visit

    def __reduce__(self) -> tuple[type[SampleVisit], tuple[int, int]]:
        return SampleVisit, (int(self), self.epoch)


class StepSampler(Sampler[list[int]]):
    """Yields the record numbers (`SampleVisit`) of one device's micro-batches, `accumulation` per step.

    Args:
        mixture: the stream of records.
        steps: number of optimizer steps.
        layout: split of a step.
        rank: this device.
        cost: record number -> (kind, tokens), by which records are sorted into micro-batches; None keeps the order of the
            stream.

    Attributes:
        start: the step to begin with; a resumed run sets it.
    """

    def __init__(
        self,
        mixture: Mixture,
        steps: int,
        layout: BatchLayout,
        rank: int = 0,
        cost: Callable[[int], tuple[str, float]] | None = None,
    ) -> None:
        self._mixture, self._steps, self.layout, self._rank, self._cost = mixture, steps, layout, rank, cost
        self.start = 0

    def __len__(self) -> int:
        return (self._steps - self.start) * self.layout.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self._steps):
            batches = self.step(step)
            for index in range(self._rank, len(batches), self.layout.world):
                yield batches[index]

    def step(self, step: int) -> list[list[int]]:
        """Return the micro-batches of a step, of all devices in turn."""
        size, parts = self.layout.batch_size, self.layout.micro_batches
        numbers, epochs = self._mixture.stream(step * size, size), self._mixture.passes(step * size, size)
        visits: list[int] = [
            SampleVisit(int(number), int(epoch)) for number, epoch in zip(numbers, epochs, strict=True)
        ]
        if parts == 1 or self._cost is None:
            return [[visits[i] for i in part] for part in np.array_split(np.arange(size), parts)]
        costs = [self._cost(visit) for visit in visits]
        kinds = [kind for kind, _ in costs]
        tokens = np.array([count for _, count in costs])
        return [[visits[i] for i in part] for part in split_by_tokens(kinds, tokens, parts)]


def split_by_tokens(kinds: Sequence[str], tokens: np.ndarray, parts: int) -> list[list[int]]:
    """Split records into `parts` non-empty groups with about equal numbers of tokens.

    Records are ordered by kind, then by falling length, so that a group holds one kind and similar lengths where possible.

    Args:
        kinds: kind of each record, n in all.
        tokens: (n,) length of each record, n >= parts.
    """
    order = sorted(range(len(kinds)), key=lambda i: (kinds[i], -tokens[i], i))
    total = np.cumsum(tokens[order])
    cuts = [0]
    for part in range(1, parts):
        ideal = int(np.searchsorted(total, total[-1] * part / parts)) + 1
        # At least one record for this group and for each one after it.
        cuts.append(min(max(ideal, cuts[-1] + 1), len(order) - (parts - part)))
    cuts.append(len(order))
    return [order[begin:end] for begin, end in pairwise(cuts)]
