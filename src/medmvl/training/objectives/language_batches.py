"""Batches of a language stage: packed or padded rows, with the positions whose logits the loss needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medmvl.models.labels import count_supervised, supervised_targets
from medmvl.processing import MedMVLProcessor
from medmvl.training.acceleration.compiled import rounded
from medmvl.training.acceleration.packing import pack, saves_attention
from medmvl.training.engine.batch import Batch, EncodedSample


@dataclass(frozen=True)
class Collator:
    """Makes batches of encoded samples.

    Attributes:
        processor: pads, if rows are not packed.
        packed: concatenate the samples instead of padding them.
        supervised_only: give the positions whose logits are needed, and their targets, instead of labels.
        bucket_lengths: pad rows to one of a few lengths, for compiled layers.
        by_masks: a mask keeps the samples of a row apart, so that a batch is packed only if that saves attention.
    """

    processor: MedMVLProcessor
    packed: bool = True
    supervised_only: bool = True
    bucket_lengths: bool = False
    by_masks: bool = False

    def __call__(self, samples: Sequence[EncodedSample]) -> Batch:
        """Return the model's inputs (B, T), with B = 1 if the batch is packed, and the counts for the log."""
        for sample in samples:
            if sample.error is not None:
                return Batch(error=sample.error)
        tensors = [sample.inputs for sample in samples]
        lengths = [len(sample["input_ids"]) for sample in tensors]
        packed = self.packed and (not self.by_masks or saves_attention(lengths))
        length = rounded(sum(lengths) if packed else max(lengths)) if self.bucket_lengths else None
        inputs: dict[str, Any] = (
            pack(tensors, length) if packed else dict(self.processor.collate(tensors, length=length))
        )
        if self.by_masks:
            inputs.pop("segments", None)  # transformers reads them off the positions
        ids, positions = tuple(sample.id for sample in samples), inputs["input_ids"].numel()
        supervised = count_supervised(inputs["labels"])
        if self.supervised_only:
            inputs["logits_to_keep"], inputs["shift_labels"] = supervised_targets(inputs.pop("labels"))
        return Batch(inputs, ids, sum(lengths), positions, supervised)
