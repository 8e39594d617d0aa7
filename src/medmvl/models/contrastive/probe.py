"""A small random batch on which two forms of one dual encoder are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from medmvl.models.contrastive.configuration import DualEncoderConfig


def dual_probe(config: DualEncoderConfig, pairs: int = 2, text_tokens: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Return pairs of seeded noise: pixels (N, C, [D,] H, W), input_ids and attention_mask (N, T)."""
    generator = torch.Generator().manual_seed(seed)
    tower, text = config.tower(config.modality), config.text_config
    length = min(text_tokens, getattr(text, "max_position_embeddings", text_tokens))
    ids = torch.randint(0, text.vocab_size, (pairs, length), generator=generator)
    pixels = torch.randn((pairs, tower.encoder_spec.channels, *tower.input_size), generator=generator)
    return {"pixels": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
