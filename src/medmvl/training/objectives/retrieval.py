"""Validation of a contrastive stage: loss and retrieval in both directions on held-out pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medmvl.data.dataset import SampleDataset
from medmvl.models.contrastive import DualEncoder, Pairing
from medmvl.models.contrastive.losses import contrastive_loss
from medmvl.models.contrastive.retrieval import both_ways, recalls
from medmvl.processing.pairs import PairProcessor, text_of
from medmvl.training.engine.devices import Engine
from medmvl.training.engine.distributed import gather_rows
from medmvl.training.objectives.gradient_cache import INPUTS

#: Pairs per forward pass.
BATCH = 8


def evaluate_retrieval(
    engine: Engine, model: DualEncoder, processor: PairProcessor, dataset: SampleDataset, samples: int, shown: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare the first records of a data set with one another; the metrics depend on their number.

    Args:
        engine: runs the model.
        model: in evaluation mode.
        processor: makes pairs.
        dataset: held-out pairs.
        samples: number of records.
        shown: number of records whose best text is returned.

    Returns:
        `loss`, `pairs`, `image_to_text_r_at_1` and so on; and rows with the text found for an image or volume
        (`prediction`) and the rank of the true one (`rank`).
    """
    visual, texts, pairing = _features(engine, model, processor, dataset, samples)
    scale, bias = model.head.log_scale.cpu(), None if model.head.bias is None else model.head.bias.cpu()
    loss = contrastive_loss(model.config.spec.loss, visual, texts, pairing.texts_of(), scale, bias)
    found = both_ways(visual, texts, pairing)
    to_text = found["image_to_text"]
    rows = [
        {
            "id": dataset.sample(i).id,
            "question": "",
            "answer": text_of(dataset.sample(i)),
            "prediction": text_of(dataset.sample(int(to_text.best[i]))),
            "rank": int(to_text.ranks[i]),
        }
        for i in range(min(shown, len(visual)))
    ]
    return {"loss": float(loss), "pairs": len(visual), **recalls(found)}, rows


def _pair(processor: PairProcessor, dataset: SampleDataset, index: int) -> dict[str, Tensor]:
    with dataset.naming(index):
        return processor.encode(dataset[index])


def _features(
    engine: Engine, model: DualEncoder, processor: PairProcessor, dataset: SampleDataset, samples: int
) -> tuple[Tensor, Tensor, Pairing]:
    """Return the features of the first records, (n, dim) each, in the records' order, on every device's CPU."""
    count = min(samples, len(dataset))
    chosen = range(count)[engine.rank :: engine.world]
    columns: dict[str, list[Tensor]] = {"visual": [], "texts": [], "visual_key": [], "text_key": []}
    for start in range(0, len(chosen), BATCH):
        pairs = [_pair(processor, dataset, index) for index in chosen[start : start + BATCH]]
        batch = engine.to_device(processor.collate(pairs))
        with engine.autocast():
            output = model(**{key: batch[key] for key in INPUTS})
        batch |= {"visual": output.visual, "texts": output.texts}
        for key, parts in columns.items():
            parts.append(batch[key])
    dim = model.config.spec.dim
    empty = {"visual": torch.zeros(0, dim), "texts": torch.zeros(0, dim)}  # of a device without a share
    numbers, _ = gather_rows(torch.tensor(list(chosen), dtype=torch.int64, device=engine.device))
    order = numbers.argsort()
    whole = {}
    for key, parts in columns.items():
        own = torch.cat(parts) if parts else empty.get(key, torch.zeros(0, dtype=torch.int64)).to(engine.device)
        whole[key] = gather_rows(own)[0][order].cpu()
    return whole["visual"], whole["texts"], Pairing(whole["visual_key"], whole["text_key"])
