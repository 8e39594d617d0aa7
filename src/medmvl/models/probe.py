"""A small random batch on which two forms of one model are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from medmvl.models import MedMVLConfig, MedMVLForConditionalGeneration
from medmvl.models.tower import count_visual_tokens
from medmvl.models.visual_inputs import PIXEL_KEYS


def probe_batch(config: MedMVLConfig, text_tokens: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Return one row with an input for every tower, made of seeded noise.

    Returns:
        input_ids (1, T), attention_mask (1, T), pixel_values (1, C, H, W), volume_values (1, C, D, H, W).
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.text_config.vocab_size, (1, text_tokens), generator=generator)
    placeholders = {modality: config.placeholder_id(modality) or 0 for modality in config.towers}
    ids[torch.isin(ids, torch.tensor(list(placeholders.values()), dtype=torch.long))] = 0
    pieces, batch = [ids], {}
    for modality, key in PIXEL_KEYS.items():
        if modality in config.towers:
            tower = config.tower(modality)
            shape = (1, tower.encoder_spec.channels, *tower.input_size)
            batch[key] = torch.randn(shape, generator=generator)
            pieces.insert(0, torch.full((1, count_visual_tokens(tower)), placeholders[modality]))
    input_ids = torch.cat(pieces, dim=1)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **batch}


@torch.no_grad()
def probe_logits(model: MedMVLForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits (T, V) in float32."""
    return model.eval()(**batch).logits[0].float()
