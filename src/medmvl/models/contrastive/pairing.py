"""Matching of texts to images or volumes, where a text or an image may occur more than once."""

from __future__ import annotations

import torch
from torch import Tensor


class Pairing:
    """The pairs of a batch or a test set, and which texts and images (volumes) of them belong together.

    A text belongs to an image (volume) if any pair joins the two. Identical reports, which are common for normal scans,
    and several reports of one scan therefore count as right.

    Args:
        visual_keys, text_keys: (n,) int64, equal where two images (volumes) or two texts are the same.
    """

    def __init__(self, visual_keys: Tensor, text_keys: Tensor) -> None:
        visual, self._visual = torch.unique(visual_keys, return_inverse=True)
        texts, self._texts = torch.unique(text_keys, return_inverse=True)
        self._joined = torch.zeros(len(visual), len(texts), dtype=torch.bool, device=visual_keys.device)
        self._joined[self._visual, self._texts] = True

    def __len__(self) -> int:
        return len(self._visual)

    def texts_of(self, visual: slice = slice(None)) -> Tensor:
        """Return (chosen images, n) bool, whether the text of pair j belongs to the image or volume of pair i."""
        return self._joined[self._visual[visual]][:, self._texts]

    def visual_of(self, texts: slice = slice(None)) -> Tensor:
        """Return (chosen texts, n) bool, whether the image or volume of pair j belongs to the text of pair i."""
        return self._joined.T[self._texts[texts]][:, self._visual]
