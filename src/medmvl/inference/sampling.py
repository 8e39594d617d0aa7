"""Sampling with one random generator per row, so that it does not depend on the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor


def row_seed(seed: int, key: str) -> int:
    """Return the seed of a row, 63 bits from the run's seed and the row's key (such as a record's id)."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class RowSampler(LogitsProcessor):
    """Turns greedy search into sampling from the softmax at a temperature.

    Adds Gumbel noise to the scaled logits; the largest sum is a sample of the softmax (the Gumbel-max trick, arXiv
    1411.0030). Noise is drawn on the CPU, so that devices agree. A row's samples depend on its seed and its logits only, not
    on the batch it is in. It must be the last processor.

    Args:
        seeds: one per row.
        temperature: above 0.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits (B, V) over the temperature, plus noise."""
        noise = torch.empty(scores.shape, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self._temperature - noise.log_().to(scores.device)
