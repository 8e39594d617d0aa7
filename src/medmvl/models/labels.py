"""Labels of a causal language model: the ignored index and the shift by one position.

Labels (B, T) stand under the tokens they name. The model predicts the token at position t + 1 from position t, so every
loss shifts the labels by one. This module owns both conventions.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Label of a position without loss (the convention of torch's cross-entropy and of transformers).
IGNORE_INDEX = -100


def shift_labels(labels: Tensor) -> Tensor:
    """Return the target of each position.

    Args:
        labels: (B, T) int64.

    Returns:
        (B, T) int64: the label of the next position; `IGNORE_INDEX` at the last one.
    """
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def supervised_targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions whose logits the loss needs, and their targets.

    Args:
        labels: (B, T) int64.

    Returns:
        A mask (B, T) bool with K positions, and their targets (K,) int64 in reading order.
    """
    shifted = shift_labels(labels)
    mask = shifted != IGNORE_INDEX
    return mask, shifted[mask]


def count_supervised(labels: Tensor) -> int:
    """Return the number of targets in labels (B, T); the first position has none before it and does not count."""
    return int((labels[:, 1:] != IGNORE_INDEX).sum())
