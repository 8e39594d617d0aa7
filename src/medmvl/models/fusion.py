"""Putting visual embeddings in their places: pure functions, no loop over the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from medmvl.errors import ModelError


def scatter_embeddings(inputs_embeds: Tensor, mask: Tensor, embeddings: Tensor, what: str) -> Tensor:
    """Replace the positions of `mask` by `embeddings`, in reading order.

    Args:
        inputs_embeds: (B, T, H).
        mask: (B, T) bool, True where a placeholder stands.
        embeddings: (N, n, H), the embeddings of N images or volumes.
        what: "image" or "volume", for the message.

    Raises:
        ModelError: if the number of placeholder tokens is not N * n. Scattering would shift every later embedding.
    """
    placeholders, given = int(mask.sum()), embeddings.shape[0] * embeddings.shape[1]
    if placeholders != given:
        raise ModelError(
            f"The batch has {placeholders} {what} placeholder tokens, but its {embeddings.shape[0]} {what}(s) give {given} "
            f"embeddings ({embeddings.shape[1]} each). Build the batch with the processor that was saved with the model."
        )
    source = embeddings.to(inputs_embeds.device, inputs_embeds.dtype)
    return inputs_embeds.masked_scatter(mask.unsqueeze(-1), source)


def without_placeholders(input_ids: Tensor, vocab_size: int) -> Tensor:
    """Return the ids with placeholder ids beyond the vocabulary set to 0, so that they can be embedded or gathered.

    The embedding table is never resized for the placeholders: their rows would be overwritten anyway.
    """
    return torch.where(input_ids < vocab_size, input_ids, torch.zeros_like(input_ids))
