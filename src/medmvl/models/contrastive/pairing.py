"""Which texts belong to which media: a text or a medium may stand in a batch or a test set more than once."""

from __future__ import annotations

import torch
from torch import Tensor


class Pairing:
    """The pairs of a batch or a test set, by what they hold.

    A text belongs to a medium if any of the pairs joins the two, so that word for word equal reports (of normal scans,
    often) and several reports of one scan are never taken for wrong ones.

    Args:
        media_keys, text_keys: (n,) int64, equal where a medium or a text is the same.
    """

    def __init__(self, media_keys: Tensor, text_keys: Tensor) -> None:
        media, self._media = torch.unique(media_keys, return_inverse=True)
        texts, self._texts = torch.unique(text_keys, return_inverse=True)
        self._joined = torch.zeros(len(media), len(texts), dtype=torch.bool, device=media_keys.device)
        self._joined[self._media, self._texts] = True

    def __len__(self) -> int:
        return len(self._media)

    def texts_of(self, media: slice = slice(None)) -> Tensor:
        """Return (chosen media, n) bool: whether the text of pair j belongs to the medium of pair i."""
        return self._joined[self._media[media]][:, self._texts]

    def media_of(self, texts: slice = slice(None)) -> Tensor:
        """Return (chosen texts, n) bool: whether the medium of pair j belongs to the text of pair i."""
        return self._joined.T[self._texts[texts]][:, self._media]
