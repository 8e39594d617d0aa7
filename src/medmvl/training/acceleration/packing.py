"""Packing: samples are concatenated to one row.

Attention is kept within a sample by `medmvl.training.acceleration.attention`, or by the masks that transformers makes from
positions that restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from medmvl.models.labels import IGNORE_INDEX
from medmvl.models.visual_inputs import VISUAL_INPUTS


class Packing(Enum):
    """What keeps attention within the samples of a packed row.

    `KERNEL` is our attention function, which takes the segments. `MASKS` are transformers' own: they need (row length)^2
    values, so that `saves_attention` says for each batch whether a packed row is worth it.
    """

    KERNEL = "medmvl's attention function"
    MASKS = "transformers' own masks"


def saves_attention(lengths: Sequence[int]) -> bool:
    """Whether a row of samples of these lengths needs no more attention scores than padded rows, if masks keep samples apart."""
    return sum(lengths) ** 2 <= len(lengths) * max(lengths) ** 2


def pack(samples: Sequence[dict[str, Tensor]], length: int | None = None) -> dict[str, Any]:
    """Concatenate encoded samples.

    Args:
        samples: `input_ids` (T_i,), `labels` (T_i,), maybe visual inputs (n_i, ...).
        length: fill the row up to this many tokens, with samples of zeros without labels.

    Returns:
        input_ids, labels, position_ids (1, T) with T = sum of T_i, or `length`; visual inputs (N, ...); `segments`, the T_i as a
        list.
    """
    if length is not None:
        samples = [*samples, *_fillers(samples, length)]
    segments = [len(sample["input_ids"]) for sample in samples]
    labels = torch.cat([sample["labels"] for sample in samples])
    # The last token of a sample must not learn to predict the first one of the next.
    labels[torch.tensor([0, *segments[:-1]]).cumsum(0)] = IGNORE_INDEX
    batch: dict[str, Any] = {
        "input_ids": torch.cat([sample["input_ids"] for sample in samples]).unsqueeze(0),
        "labels": labels.unsqueeze(0),
        "position_ids": torch.cat([torch.arange(length) for length in segments]).unsqueeze(0),
        "segments": segments,
    }
    for key in VISUAL_INPUTS:
        visual = [sample[key] for sample in samples if key in sample]
        if visual:
            batch[key] = torch.cat(visual)
    return batch


def _fillers(samples: Sequence[dict[str, Tensor]], length: int) -> Iterator[dict[str, Tensor]]:
    """Yield fillers, none longer than the longest sample, since attention costs the square of a segment's length."""
    sizes = [len(sample["input_ids"]) for sample in samples]
    missing = length - sum(sizes)
    while missing > 0:
        size = min(missing, max(sizes))
        filler = torch.zeros(size, dtype=samples[0]["input_ids"].dtype)
        yield {"input_ids": filler, "labels": torch.full_like(filler, IGNORE_INDEX)}
        missing -= size
