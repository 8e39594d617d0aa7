"""Samples end to end in one row. That they do not see each other is `medmvl.training.attention`'s affair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_IGNORE = -100
_MEDIA = ("pixel_values", "volume_values", "image_features", "volume_features")


def pack(samples: Sequence[dict[str, Tensor]], length: int | None = None) -> dict[str, Any]:
    """Lay encoded samples end to end.

    Args:
        samples: `input_ids` (T_i,), `labels` (T_i,), maybe media (n_i, ...).
        length: fill the row up to so many tokens, with samples of zeros that have no labels.

    Returns:
        input_ids, labels, position_ids (1, T) with T = sum of T_i, or `length`; media (N, ...); `segments`, the T_i as a
        list.
    """
    if length is not None:
        samples = [*samples, *_fillers(samples, length)]
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


def _fillers(samples: Sequence[dict[str, Tensor]], length: int) -> Iterator[dict[str, Tensor]]:
    """Yield what a row lacks, no piece longer than the longest sample: attention costs the square of a piece's length."""
    sizes = [len(sample["input_ids"]) for sample in samples]
    missing = length - sum(sizes)
    while missing > 0:
        size = min(missing, max(sizes))
        filler = torch.zeros(size, dtype=samples[0]["input_ids"].dtype)
        yield {"input_ids": filler, "labels": torch.full_like(filler, _IGNORE)}
        missing -= size
