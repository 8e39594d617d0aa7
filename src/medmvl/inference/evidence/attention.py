"""Attention of the language model to the tokens of a visual input: a quick preview, and no evidence.

The mean over layers and heads of the attention from the positions that predict a sentence. Attention weights are a poor guide to
what decided an output (Jain and Wallace 2019, arXiv:1902.10186).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medmvl.errors import ModelError
from medmvl.inference.evidence.likelihood import SentenceLikelihood
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.grid import Grid


@torch.no_grad()
def attention_heat(likelihood: SentenceLikelihood, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the attention to each place of an input, (H, W) or (D, H, W) as `shape`; it sums to about 1.

    Raises:
        ModelError: if tokens have no place, or the language model keeps no attention weights.
    """
    model = likelihood.model
    grid = _grid(model, likelihood.modality, shape)
    embeddings = likelihood.embed(likelihood.features[likelihood.modality][likelihood.index : likelihood.index + 1])
    with _eager_attention(model):
        found = model.language_model(
            inputs_embeds=embeddings, use_cache=False, output_attentions=True, logits_to_keep=1
        ).attentions
    layers = [layer for layer in found or () if layer is not None]
    if not layers:
        raise ModelError("This language model returns no attention weights. Use the method 'occlusion'.")
    asking = likelihood.positions - 1
    weights = torch.stack([layer[0][:, asking].float().mean((0, 1)) for layer in layers]).mean(0)  # (T,)
    places = (likelihood.ids == model.config.placeholder_id(likelihood.modality)).nonzero()[:, 0]
    own = weights[places].view(-1, grid.tokens)[likelihood.index]
    tokens = _without_prefix(own, grid).view(grid.shape)
    spread = F.interpolate(tokens[None, None], size=shape, mode="nearest")[0, 0]
    return (spread / spread.sum().clamp_min(1e-12)).cpu().numpy().astype(np.float32)


def _grid(model: MedMVLForConditionalGeneration, modality: str, shape: tuple[int, ...]) -> Grid:
    spec = model.config.tower(modality)
    grid = spec.output_grid(shape)
    name = spec.connector.pooling["name"]
    if name == "perceiver" or len(grid.shape) > len(shape):
        raise ModelError(
            f"The pooling {name!r} mixes all places of the input in each token, so attention to a token shows no place. "
            "Use the method 'occlusion'."
        )
    if len(grid.shape) < len(shape):  # averaged over the slices
        return Grid((1, *grid.shape), grid.num_prefix_tokens, grid.slicewise)
    return grid


def _without_prefix(tokens: Tensor, grid: Grid) -> Tensor:
    """Return the tokens (T,) without class and register tokens."""
    if not grid.num_prefix_tokens:
        return tokens
    rows = tokens.view(grid.shape[0] if grid.slicewise else 1, -1)
    return rows[:, grid.num_prefix_tokens :].reshape(-1)


@contextmanager
def _eager_attention(model: MedMVLForConditionalGeneration) -> Iterator[None]:
    """Let the language model compute attention weights; other implementations keep none."""
    llm = model.language_model
    before = llm.config._attn_implementation
    llm.set_attn_implementation("eager")
    try:
        yield
    finally:
        llm.set_attn_implementation(before)
