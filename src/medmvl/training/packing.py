"""Samples end to end in one row. That they do not see each other is `medmvl.training.attention`'s affair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_IGNORE = -100
_MEDIA = ("pixel_values", "volume_values", "image_features", "volume_features")


def pack(samples: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    """Lay encoded samples end to end.

    Args:
        samples: `input_ids` (T_i,), `labels` (T_i,), maybe media (n_i, ...).

    Returns:
        input_ids, labels, position_ids (1, T) with T = sum of T_i; media (N, ...); `segments`, the T_i as a list.
    """
    segments = [len(sample["input_ids"]) for sample in samples]
    labels = torch.cat([sample["labels"] for sample in samples])
    # The last token of a sample must not learn to predict the first one of the next.
    labels[torch.tensor([0, *segments[:-1]]).cumsum(0)] = _IGNORE
    batch: dict[str, Any] = {
        "input_ids": torch.cat([sample["input_ids"] for sample in samples]).unsqueeze(0),
        "labels": labels.unsqueeze(0),
        "position_ids": torch.cat([torch.arange(length) for length in segments]).unsqueeze(0),
        "segments": segments,
    }
    for key in _MEDIA:
        media = [sample[key] for sample in samples if key in sample]
        if media:
            batch[key] = torch.cat(media)
    return batch
