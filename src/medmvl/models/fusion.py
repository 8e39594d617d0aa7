"""Merging of token embeddings and visual embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medmvl.errors import ModelError, counted


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
            f"The batch has {placeholders} {what} placeholder tokens, but its {counted(embeddings.shape[0], f'{what} gives', f'{what}s give')} {given} "
            f"embeddings ({embeddings.shape[1]} each). Build the batch with the processor that was saved with the model."
        )
    source = embeddings.to(inputs_embeds.device, inputs_embeds.dtype)
    return inputs_embeds.masked_scatter(mask.unsqueeze(-1), source)


def embeddable_ids(input_ids: Tensor, rows: int, placeholders: Sequence[int | None]) -> Tensor:
    """Return ids that can be looked up in the embedding table: placeholders without a row become 0.

    The table is never resized for placeholders, because visual embeddings overwrite what stands there.

    Args:
        input_ids: (B, T) int64.
        rows: of the embedding table.
        placeholders: ids of the placeholder tokens.

    Returns:
        (B, T) int64.

    Raises:
        ModelError: if an id has no row and is not a placeholder.
    """
    known = [token for token in placeholders if token is not None and token >= rows]
    without_row = input_ids >= rows
    foreign = without_row & ~torch.isin(input_ids, torch.tensor(known, dtype=input_ids.dtype, device=input_ids.device))
    if foreign.any():
        raise ModelError(
            f"The batch holds the token id {int(input_ids[foreign][0])}, and the embedding table has {rows} rows. Build the "
            "batch with the processor that was saved with the model, or call resize_token_embeddings for new tokens."
        )
    return input_ids.masked_fill(without_row, 0)
