"""Samples and batches as they travel from the data set to the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from medmvl.errors import MedMVLError


@dataclass(frozen=True)
class EncodedSample:
    """A record as tensors.

    Attributes:
        id: of the record.
        inputs: name -> tensor.
        error: why the record cannot be used. A data loader's process cannot raise it as it is, so it travels along.
    """

    id: str
    inputs: dict[str, Tensor] = field(default_factory=dict)
    error: MedMVLError | None = None


@dataclass(frozen=True)
class Batch:
    """A micro-batch: the model's inputs, and what the loop counts and logs.

    Attributes:
        inputs: arguments of the model (or the objective).
        ids: of the records.
        tokens: number of tokens without padding.
        positions: number of tokens with padding.
        supervised: number of terms in the loss, by which micro-batches are weighted: tokens with a label, or pairs.
        error: why one of the records cannot be used.
    """

    inputs: dict[str, Any] = field(default_factory=dict)
    ids: tuple[str, ...] = ()
    tokens: int = 0
    positions: int = 0
    supervised: int = 0
    error: MedMVLError | None = None

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in page-locked memory; called by torch's data loader."""
        pinned = {key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in self.inputs.items()}
        return replace(self, inputs=pinned)
