"""Comparison of a converted folder with its source, before it is published.

Both models map the weights of their LLM from files, in the stored dtype, so that neither is in memory as a whole.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from medmvl.checkpoints.source import Source
from medmvl.errors import CheckpointError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.probe import probe_batch, probe_logits

#: Largest difference that is rounding, relative to the largest logit, of two implementations in one dtype.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def compare_written(source: Source, folder: Path) -> float:
    """Load a written folder and return the largest difference of its logits from the source's, relative to the largest.

    The source is its tensors under our names and, where transformers has an implementation of the layout, that as well.

    Raises:
        CheckpointError: if the logits are not those of the source.
    """
    batch = probe_batch(source.config)
    model = MedMVLForConditionalGeneration.from_pretrained(folder, dtype="auto")
    written, dtype = _logits(model, batch), model.language_model.dtype
    del model
    largest = 0.0
    for what, expected in _expected(source, batch):
        width = min(written.shape[-1], expected.shape[-1])
        difference = float((written - expected)[..., :width].abs().max() / expected.abs().max().clamp(min=1e-12))
        tolerance = _TOLERANCES.get(dtype, 1e-4) if what == "transformers" else 1e-6
        if not difference <= tolerance:
            raise CheckpointError(
                f"The converted model's logits differ from the source's (by {what}) by {difference:.1e} of the largest one, more "
                f"than rounding explains ({tolerance:.0e}). Nothing is kept. Please report this."
            )
        largest = max(largest, difference)
    return largest


def _logits(model: MedMVLForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits (T, V), with the towers in fp32: torch has no average over volumes in bf16 on the CPU."""
    model.towers.float()
    return probe_logits(model, batch)


def _expected(source: Source, batch: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return (implementation, logits (T, V)) of the source."""
    state = {name: entry.load() for name, entry in source.entries.items()}
    model = MedMVLForConditionalGeneration.from_tensors(source.config, state)
    found = [("its tensors", _logits(model, batch))]
    del model, state
    if source.original is not None:
        found.append(("transformers", source.original(batch)))
    return found
