"""Encoder features of images and volumes, kept by content, so that many questions about one encode it once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.visual_inputs import FEATURE_KEYS, PIXEL_KEYS

#: Bytes of features that are kept: about 300 volumes of 256 tokens and width 768 in float32.
LIMIT = 2**28


class VisualCache:
    """Features of the most recent visual inputs.

    Args:
        limit: bytes of features that are kept; the least recently used go first.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._size = 0
        self._features: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self.encoded = 0  # encoder runs so far
        self.queries = 0

    @staticmethod
    def keys(encoded: dict[str, Tensor]) -> dict[str, list[str]]:
        """Return a digest of the content of each visual input, by modality and in order.

        Args:
            encoded: from `MedMVLProcessor.encode`: pixels (n, C, [D,] H, W), or features (n, tokens, encoder width).
        """
        found = {}
        for modality in PIXEL_KEYS:
            values = encoded.get(PIXEL_KEYS[modality], encoded.get(FEATURE_KEYS[modality]))
            if values is not None:
                found[modality] = [digest(value) for value in values]
        return found

    @torch.no_grad()
    def encode(
        self,
        model: MedMVLForConditionalGeneration,
        encoded: dict[str, Tensor],
        keys: dict[str, list[str]] | None = None,
    ) -> dict[str, Tensor]:
        """Return an encoded prompt with features (n, tokens, encoder width) instead of pixels (n, C, [D,] H, W).

        Args:
            model: in evaluation mode; always the same one.
            encoded: from `MedMVLProcessor.encode`.
            keys: of the same prompt, if they are known already.
        """
        result = dict(encoded)
        keys = keys if keys is not None else self.keys(encoded)
        for modality, name in PIXEL_KEYS.items():
            if name in encoded and modality in model.towers:
                pairs = zip(keys[modality], result.pop(name), strict=True)
                features = [self._feature(model, modality, key, pixels) for key, pixels in pairs]
                result[FEATURE_KEYS[modality]] = torch.stack(features)
        return result

    def _feature(self, model: MedMVLForConditionalGeneration, modality: str, content: str, pixels: Tensor) -> Tensor:
        key = (modality, content)
        self.queries += 1
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        features = model.tower(modality).encode_pooled(pixels[None].to(model.device))[0]
        self.encoded += 1
        self._features[key] = features
        self._size += features.nbytes
        while self._size > self._limit and len(self._features) > 1:
            _, oldest = self._features.popitem(last=False)
            self._size -= oldest.nbytes
        return features


def digest(values: Tensor) -> str:
    """Return a hash of a tensor of any shape: of its dtype, shape and values."""
    found = hashlib.blake2b(f"{values.dtype} {tuple(values.shape)}".encode(), digest_size=16)
    found.update(values.cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()
