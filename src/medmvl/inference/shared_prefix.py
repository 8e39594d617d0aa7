"""Prefill of the prompt prefix that several questions about the same visual inputs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.compatibility import CACHE
from medmvl.models.visual_inputs import VISUAL_INPUTS

#: Shorter prefixes are not worth a separate forward pass.
_SHORTEST = 8


@dataclass
class Prefix:
    """A prefilled prefix.

    Attributes:
        ids: (P,) int64.
        cache: keys and values of the prefix, one row per question.
    """

    ids: Tensor
    cache: DynamicCache


def prefill(model: MedMVLForConditionalGeneration, encoded: Sequence[dict[str, Tensor]]) -> Prefix | None:
    """Run the common prefix of encoded prompts once; None if that does not pay or would change answers.

    The prompts must have the same visual inputs, all of them inside the prefix. The cache must keep every position, so that
    padding between prefix and question can be masked; an LLM with a sliding window or a state does not. Rules about
    repetition apply to the answer alone, which needs a prompt without a prefilled part.

    Args:
        model: in evaluation mode.
        encoded: `input_ids` (T,) and visual inputs (n, ...).
    """
    settings = model.generation_config
    rules = (settings.repetition_penalty not in (None, 1.0), settings.no_repeat_ngram_size)
    if len(encoded) < 2 or any(rules) or not _same_visual_inputs(encoded):
        return None
    length = _common_length([sample["input_ids"] for sample in encoded])
    placeholders = {model.config.image_token_id, model.config.volume_token_id}
    behind = any(placeholders & set(sample["input_ids"][length:].tolist()) for sample in encoded)
    if length < _SHORTEST or behind:
        return None
    ids = encoded[0]["input_ids"][:length]
    visual: dict[str, Any] = {key: encoded[0][key].to(model.device) for key in VISUAL_INPUTS if key in encoded[0]}
    embeddings = model.embed(ids[None].to(model.device), **visual)
    cache = getattr(model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1), CACHE)
    if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.batch_repeat_interleave(len(encoded))
    return Prefix(ids, cache)


def _same_visual_inputs(encoded: Sequence[dict[str, Tensor]]) -> bool:
    first = encoded[0]
    return all(
        (key in sample) == (key in first) and (key not in first or torch.equal(sample[key], first[key]))
        for sample in encoded[1:]
        for key in VISUAL_INPUTS
    )


def _common_length(rows: Sequence[Tensor]) -> int:
    """Return the length of the longest common prefix that leaves every row at least one token."""
    shortest = min(map(len, rows)) - 1
    equal = torch.stack([row[:shortest] == rows[0][:shortest] for row in rows]).all(0)
    return int(equal.long().cumprod(0).sum())
