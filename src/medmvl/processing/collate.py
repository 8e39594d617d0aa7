"""Padding and stacking of encoded samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from medmvl.models.labels import IGNORE_INDEX
from medmvl.models.visual_inputs import VISUAL_INPUTS


def collate(
    samples: Sequence[dict[str, Tensor]],
    pad_token_id: int,
    padding_side: Literal["left", "right"] = "right",
    length: int | None = None,
) -> dict[str, Tensor]:
    """Pad text to the longest row and concatenate visual inputs.

    Args:
        samples: from `MedMVLProcessor.encode`: `input_ids` (T,), maybe `labels` (T,), maybe visual inputs (n, ...).
        padding_side: "right" for training, "left" for generation.
        length: pad to this many tokens instead.

    Returns:
        input_ids (B, T), attention_mask (B, T), labels (B, T) if all samples have them, and the visual inputs (N, ...).
    """
    length = length or max(len(sample["input_ids"]) for sample in samples)

    def pad(row: Tensor, value: int) -> Tensor:
        missing = length - len(row)
        sides = (missing, 0) if padding_side == "left" else (0, missing)
        return torch.nn.functional.pad(row, sides, value=value)

    batch = {
        "input_ids": torch.stack([pad(sample["input_ids"], pad_token_id) for sample in samples]),
        "attention_mask": torch.stack([pad(torch.ones_like(sample["input_ids"]), 0) for sample in samples]),
    }
    if all("labels" in sample for sample in samples):
        batch["labels"] = torch.stack([pad(sample["labels"], IGNORE_INDEX) for sample in samples])
    for key in VISUAL_INPUTS:
        tensors = [sample[key] for sample in samples if key in sample]
        if tensors:
            batch[key] = torch.cat(tensors)
    return batch
