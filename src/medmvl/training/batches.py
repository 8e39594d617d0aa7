"""Which records make up an optimiser step, how they are shared out, and how they become a batch.

A step is `batch_size` consecutive records of the mixture's stream, whatever the number of devices or micro-batches:
8 at once, 1 eight times, and 4 on each of two devices give the same gradient. Within a step, records are laid into
micro-batches so that kinds of media and lengths go together and every device has about as many tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from medmvl.data.mixture import Mixture
from medmvl.data.sample import Sample
from medmvl.errors import MedMVLError, RecipeError
from medmvl.processing import MedMVLProcessor
from medmvl.training.augmentation import Augmenter
from medmvl.training.compiled import rounded
from medmvl.training.features import StoredMedia
from medmvl.training.packing import pack

#: Average length of a token in characters; only balances micro-batches, so a guess is good enough.
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class StepShape:
    """How a step is shared out.

    Attributes:
        batch_size: records per step.
        world: devices.
        accumulation: micro-batches per device and step.
    """

    batch_size: int
    world: int = 1
    accumulation: int = 1

    @classmethod
    def of(cls, batch_size: int, micro_batch_size: int | None, world: int) -> StepShape:
        """Return the shape with as few micro-batches as `micro_batch_size` allows.

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


class Visit(int):
    """A record number that remembers in which pass over its data set the record is shown, from 0."""

    epoch: int

    def __new__(cls, number: int, epoch: int) -> Visit:
        """Return the number with its pass."""
        visit = super().__new__(cls, number)
        visit.epoch = epoch
        return visit

    def __reduce__(self) -> tuple[type[Visit], tuple[int, int]]:
        return Visit, (int(self), self.epoch)


class StepSampler(Sampler[list[int]]):
    """Yields the record numbers (as Visits) of this device's micro-batches, `accumulation` per step.

    Args:
        mixture: the stream.
        steps: number of optimiser steps.
        shape: how a step is shared out.
        rank: this device.
        cost: record number -> (kind, tokens): records of one kind and of similar length go together; None keeps
            the stream's order.
    """

    def __init__(
        self,
        mixture: Mixture,
        steps: int,
        shape: StepShape,
        rank: int = 0,
        cost: Callable[[int], tuple[str, float]] | None = None,
    ) -> None:
        self._mixture, self._steps, self._shape, self._rank, self._cost = mixture, steps, shape, rank, cost

    def __len__(self) -> int:
        return self._steps * self._shape.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._steps):
            batches = self.step(step)
            for index in range(self._rank, len(batches), self._shape.world):
                yield batches[index]

    def step(self, step: int) -> list[list[int]]:
        """Return the micro-batches of a step, of all devices in turn."""
        size, parts = self._shape.batch_size, self._shape.micro_batches
        numbers, passes = self._mixture.stream(step * size, size), self._mixture.passes(step * size, size)
        visits: list[int] = [Visit(int(number), int(epoch)) for number, epoch in zip(numbers, passes, strict=True)]
        if parts == 1 or self._cost is None:
            return [[visits[i] for i in part] for part in np.array_split(np.arange(size), parts)]
        costs = [self._cost(visit) for visit in visits]
        kinds = [kind for kind, _ in costs]
        tokens = np.array([count for _, count in costs])
        return [[visits[i] for i in part] for part in share_out(kinds, tokens, parts)]


def share_out(kinds: Sequence[str], tokens: np.ndarray, parts: int) -> list[list[int]]:
    """Cut records into `parts` non-empty groups of neighbours with about equal tokens.

    Records are ordered by kind, then length, so that a group is of one kind and one length where that is possible.

    Args:
        kinds: kind of each record.
        tokens: (n,) length of each record, n >= parts.
    """
    order = sorted(range(len(kinds)), key=lambda i: (kinds[i], -tokens[i], i))
    total = np.cumsum(tokens[order])
    cuts = [0]
    for part in range(1, parts):
        ideal = int(np.searchsorted(total, total[-1] * part / parts)) + 1
        # Leave at least one record for this group and for each one after it.
        cuts.append(min(max(ideal, cuts[-1] + 1), len(order) - (parts - part)))
    cuts.append(len(order))
    return [order[begin:end] for begin, end in pairwise(cuts)]


def cost_of(sample: Sample, processor: MedMVLProcessor) -> tuple[str, float]:
    """Return the kinds of media of a sample and about how many tokens it takes."""
    text = sum(len(message.text) for message in sample.messages) / CHARACTERS_PER_TOKEN
    visual = len(sample.images) * processor.image_tokens + len(sample.volumes) * processor.volume_tokens
    kind = f"{'image' if sample.images else ''}{'volume' if sample.volumes else ''}"
    return kind, text + visual


class EncodedRecords(Dataset[dict[str, Any]]):
    """Record numbers become encoded samples.

    A record that cannot be used comes as its error, so that the training process raises it as it is: an error that
    leaves a loader process would come wrapped in that process's traceback.

    Args:
        mixture: the records.
        processor: encodes them.
        stored: encodes them with stored features instead of pixels.
        cache_bytes: keep encoded samples in memory up to this size, per loader process; worth it for small data sets
            that are seen many times.
        augment: changes encoded samples anew in each pass; what is kept in memory stays unchanged.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: MedMVLProcessor,
        cache_bytes: int = 0,
        stored: StoredMedia | None = None,
        augment: Augmenter | None = None,
    ) -> None:
        self._mixture, self._processor, self._stored, self._augment = mixture, processor, stored, augment
        self._room = cache_bytes
        self._kept: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._mixture)

    def __getitem__(self, number: int) -> dict[str, Any]:
        encoded = self._encoded(number)
        if self._augment is None or "error" in encoded:
            return encoded
        return self._augment(encoded, self._mixture.sample(number), getattr(number, "epoch", 0))

    def _encoded(self, number: int) -> dict[str, Any]:
        if number in self._kept:
            return self._kept[number]
        try:
            sample = self._mixture[number]
            tensors = self._stored.encode(sample) if self._stored is not None else self._processor.encode(sample)
            encoded = {"id": sample.id, **tensors}
        except MedMVLError as error:
            return {"error": error}
        size = sum(value.nbytes for value in encoded.values() if isinstance(value, Tensor))
        if size <= self._room:
            self._room -= size
            self._kept[number] = encoded
        return encoded


@dataclass(frozen=True)
class BatchMaker:
    """Encoded samples become a batch.

    Attributes:
        processor: pads, where rows are not packed.
        packed: lay samples end to end instead.
        supervised_only: name the positions whose logits are needed, and their targets, instead of labels.
        few_lengths: pad rows to one of a few lengths, for compiled layers.
    """

    processor: MedMVLProcessor
    packed: bool = True
    supervised_only: bool = True
    few_lengths: bool = False

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the model's inputs, and `ids`, `tokens` (without padding) and `supervised` for the log."""
        for sample in samples:
            if "error" in sample:
                return {"error": sample["error"]}
        ids = [sample["id"] for sample in samples]
        tensors = [{key: value for key, value in sample.items() if key != "id"} for sample in samples]
        lengths = [len(sample["input_ids"]) for sample in samples]
        length = rounded(sum(lengths) if self.packed else max(lengths)) if self.few_lengths else None
        batch: dict[str, Any] = (
            pack(tensors, length) if self.packed else dict(self.processor.collate(tensors, length=length))
        )
        batch["ids"] = ids
        batch["tokens"] = sum(lengths)
        batch["positions"] = batch["input_ids"].numel()
        batch["supervised"] = int((batch["labels"][:, 1:] != -100).sum())
        if self.supervised_only:
            batch["logits_to_keep"], batch["shift_labels"] = supervised(batch.pop("labels"))
        return batch


def supervised(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return where logits are needed, (B, T) bool, and their targets (K,): label t + 1 is predicted at position t."""
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    mask = shifted != -100
    return mask, shifted[mask]
