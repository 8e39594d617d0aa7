"""Log-probability of a sentence of an answer under many versions of one visual input."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.compatibility import CACHE
from medmvl.models.labels import IGNORE_INDEX
from medmvl.models.visual_inputs import FEATURE_KEYS

#: Shorter prefixes are not worth a separate forward pass.
_SHORTEST = 8


class SentenceLikelihood:
    """Scores versions of one visual input; what stands in front of it in the prompt is run once.

    Args:
        model: in evaluation mode.
        ids: (T,) prompt and answer.
        labels: (T,) the sentence's tokens; `IGNORE_INDEX` elsewhere.
        features: features (n, tokens, width) of all visual inputs, by modality.
        modality, index: the input that varies.
    """

    def __init__(
        self,
        model: MedMVLForConditionalGeneration,
        ids: Tensor,
        labels: Tensor,
        features: dict[str, Tensor],
        modality: str,
        index: int,
    ) -> None:
        self.model, self.modality, self.index = model, modality, index
        last = int((labels != IGNORE_INDEX).nonzero().max())
        self.ids = ids[: last + 1].to(model.device)  # what follows the sentence does not matter
        self.labels = labels[: last + 1].to(model.device)
        self.features = features
        self._prefix = self._run_prefix()

    @property
    def positions(self) -> Tensor:
        """(K,) positions of the sentence's tokens."""
        return (self.labels != IGNORE_INDEX).nonzero()[:, 0]

    @torch.no_grad()
    def score(self, pixels: Tensor) -> list[float]:
        """Return the log-probability in nats of the sentence for each version (N, C, [D,] H, W) of the input."""
        encoded = self.model.tower(self.modality).encode_pooled(pixels.to(self.model.device))
        return self.score_features(encoded)

    @torch.no_grad()
    def score_features(self, encoded: Tensor) -> list[float]:
        """Return the log-probability in nats of the sentence for features (N, tokens, width) of the input."""
        count = len(encoded)
        embeddings = self.embed(encoded)
        start, cache = 0, None
        if self._prefix is not None:
            start, cache = self._prefix[0], copy.deepcopy(self._prefix[1])
            cache.batch_repeat_interleave(count)
        positions = self.positions
        wanted = positions - 1 - start
        mask = torch.ones(count, len(self.ids), dtype=torch.long, device=embeddings.device)
        inputs: dict[str, Any] = {"inputs_embeds": embeddings[:, start:], "attention_mask": mask, "use_cache": False}
        if cache is not None:
            inputs |= {CACHE: cache, "use_cache": True}
        logits = self.model(**inputs, logits_to_keep=wanted).logits.float()  # (N, K, V)
        logs = torch.log_softmax(logits, dim=-1)
        targets = self.labels[positions].expand(count, -1)[..., None]
        return logs.gather(2, targets)[..., 0].double().sum(1).tolist()

    def embed(self, encoded: Tensor) -> Tensor:
        """Return the LLM's input (N, T, H) for features (N, tokens, width) of the input that varies."""
        count = len(encoded)
        given = {}
        for modality, features in self.features.items():
            rows = features.to(self.model.device)[None].repeat(count, *(1 for _ in features.shape))
            if modality == self.modality:
                rows[:, self.index] = encoded.to(rows.dtype)
            given[FEATURE_KEYS[modality]] = rows.flatten(0, 1)
        return self.model.embed(self.ids.expand(count, -1), **given)

    @torch.no_grad()
    def _run_prefix(self) -> tuple[int, DynamicCache] | None:
        """Run what precedes the input that varies; None if it is short or the cache does not keep every position."""
        placeholder = self.model.config.placeholder_id(self.modality)
        places = (self.ids == placeholder).nonzero()[:, 0]
        each = len(places) // len(self.features[self.modality])
        length = int(places[self.index * each])
        if length < _SHORTEST:
            return None
        whole = self.embed(self.features[self.modality][self.index : self.index + 1])
        cache = getattr(self.model(inputs_embeds=whole[:, :length], use_cache=True, logits_to_keep=1), CACHE)
        plain = isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
        return (length, cache) if plain else None


def sentence_labels(labels: Sequence[int], texts: Sequence[str], span: tuple[int, int]) -> list[int]:
    """Return labels (T,) of which only the tokens that share a character with `span` of the answer are left.

    Args:
        labels: of the whole answer, `IGNORE_INDEX` elsewhere.
        texts: the text of the answer's first 0, 1, ... tokens.
        span: first character and end in the answer.
    """
    found = [IGNORE_INDEX] * len(labels)
    places = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
    for number, place in enumerate(places):
        start, end = len(texts[number]), len(texts[number + 1])
        if start < span[1] and end > span[0] and end > start:
            found[place] = labels[place]
    return found
