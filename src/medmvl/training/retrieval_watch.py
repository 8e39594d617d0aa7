"""Looking at held-out pairs while a contrastive stage runs: loss, recall in both directions, the reports found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerState

from medmvl.data.dataset import SampleDataset
from medmvl.models.contrastive import DualEncoder, Pairing
from medmvl.models.contrastive.losses import contrastive_loss
from medmvl.models.contrastive.retrieval import both_ways, recalls
from medmvl.processing.pairs import PairProcessor, text_of
from medmvl.training.contrastive_trainer import INPUTS, gather_rows
from medmvl.training.recipe import EvaluateSection
from medmvl.training.watch import BATCH, HeldOut, append_rows, evaluating


class RetrievalWatch(HeldOut):
    """Loss and retrieval of a contrastive stage.

    The `samples` first records of each data set are compared with one another: their number decides what the loss and the
    recalls mean. Rows of `evaluation.jsonl` hold `loss`, `pairs`, and `image_to_text_r_at_1` and so on; rows of
    `samples.jsonl` the text that was found for an image or volume (`prediction`) and the place of the true one (`rank`).

    Args:
        folder, stage, settings, datasets: as for `HeldOut`.
        processor: makes pairs.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        settings: EvaluateSection,
        datasets: Mapping[str, SampleDataset],
        processor: PairProcessor,
    ) -> None:
        super().__init__(folder, stage, settings, datasets)
        self._processor = processor

    def _evaluate(self, state: TrainerState) -> float:
        """Write the rows of one look and return the metric that decides over all data, weighted by their pairs."""
        model: Any = self.trainer.applied.model
        assert isinstance(model, DualEncoder)
        rows: list[dict[str, Any]] = []
        samples: list[dict[str, Any]] = []
        with evaluating(model):
            for name, dataset in self._datasets.items():
                where = {"stage": self._stage, "step": state.global_step, "data": name}
                facts, found = self._look(model, dataset)
                rows.append(where | facts)
                samples += [where | row for row in found]
        pairs = sum(row["pairs"] for row in rows)
        names = [key for key in rows[0] if key not in ("stage", "step", "data", "pairs")]
        means = {key: sum(row[key] * row["pairs"] for row in rows) / pairs for key in names}
        rows.append({"stage": self._stage, "step": state.global_step, "data": "all", "pairs": pairs, **means})
        if state.is_world_process_zero:
            append_rows(self._losses, rows)
            append_rows(self._samples, samples)
        if self._settings.metric == "recall":
            return float(sum(means[name] for name in names if name != "loss") / (len(names) - 1))
        return float(means["loss"])

    def _look(self, model: DualEncoder, dataset: SampleDataset) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return loss, number of pairs and recalls of one data set, and what was found for its first records."""
        media, texts, pairing = self._features(model, dataset)
        scale, bias = model.head.log_scale.cpu(), None if model.head.bias is None else model.head.bias.cpu()
        loss = contrastive_loss(model.config.spec.loss, media, texts, pairing.texts_of(), scale, bias)
        found = both_ways(media, texts, pairing)
        there = found["image_to_text"]
        shown = range(min(self._settings.generate, len(media)))
        samples = [dataset.sample(i) for i in shown]
        rows = [
            {
                "id": sample.id,
                "question": "",
                "answer": text_of(sample),
                "prediction": text_of(dataset.sample(int(there.best[i]))),
                "rank": int(there.ranks[i]),
            }
            for i, sample in zip(shown, samples, strict=True)
        ]
        return {"loss": float(loss), "pairs": len(media), **recalls(found)}, rows

    def _features(self, model: DualEncoder, dataset: SampleDataset) -> tuple[Tensor, Tensor, Pairing]:
        """Return the features of the first records, (n, dim) each, in the records' order, on every device's CPU."""
        args = self.trainer.args
        count = min(self._settings.samples, len(dataset))
        chosen = range(count)[args.process_index :: args.world_size]
        columns: dict[str, list[Tensor]] = {"media": [], "texts": [], "media_key": [], "text_key": []}
        for start in range(0, len(chosen), BATCH):
            pairs = [self._processor.encode(dataset[index]) for index in chosen[start : start + BATCH]]
            batch = self.trainer._prepare_inputs(self._processor.collate(pairs))
            with self.trainer.accelerator.autocast():
                output = model(**{key: batch[key] for key in INPUTS})
            batch |= {"media": output.media, "texts": output.texts}
            for key, parts in columns.items():
                parts.append(batch[key])
        dim = model.config.spec.dim
        empty = {"media": torch.zeros(0, dim), "texts": torch.zeros(0, dim)}  # of a device without a share
        numbers, _ = gather_rows(torch.tensor(list(chosen), dtype=torch.int64, device=args.device))
        order = numbers.argsort()
        whole = {}
        for key, parts in columns.items():
            own = torch.cat(parts) if parts else empty.get(key, torch.zeros(0, dtype=torch.int64)).to(args.device)
            whole[key] = gather_rows(own)[0][order].cpu()
        return whole["media"], whole["texts"], Pairing(whole["media_key"], whole["text_key"])
