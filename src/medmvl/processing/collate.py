"""Encoded samples become a batch: pads and stacks, decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from medmvl.processing.chat import IGNORE

#: Modality -> the key of its pixels in an encoded sample and in a batch.
PIXELS = {"image": "pixel_values", "volume": "volume_values"}

#: One value per media key and batch: the images or volumes of all rows, in reading order.
_STACKED = ("pixel_values", "volume_values", "image_features", "volume_features")


def collate(
    samples: Sequence[dict[str, Tensor]],
    pad_token_id: int,
    padding_side: Literal["left", "right"] = "right",
    length: int | None = None,
) -> dict[str, Tensor]:
    """Pad text to the longest row and concatenate media.

    Args:
        samples: from `MedMVLProcessor.encode`: `input_ids` (T,), maybe `labels` (T,), maybe media (n, ...).
        padding_side: "right" for training, "left" for generation.
        length: pad to so many tokens instead.

    Returns:
        input_ids (B, T), attention_mask (B, T), labels (B, T) if all samples have them, and the media (N, ...).
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
        batch["labels"] = torch.stack([pad(sample["labels"], IGNORE) for sample in samples])
    for key in _STACKED:
        media = [sample[key] for sample in samples if key in sample]
        if media:
            batch[key] = torch.cat(media)
    return batch
