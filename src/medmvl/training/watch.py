"""Looking at held-out data while a stage runs: loss, generated answers, the best checkpoint, early stopping."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerControl, TrainerState, TrainingArguments

from medmvl.data.dataset import SampleDataset
from medmvl.data.sample import Message
from medmvl.errors import DataError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.processing import MedMVLProcessor
from medmvl.training.answers import judged
from medmvl.training.attention import attention
from medmvl.training.batches import BatchMaker
from medmvl.training.callbacks import StageCallback, drop_lines_after
from medmvl.training.recipe import EvaluateSection

logger = logging.getLogger(__name__)

#: Samples that go through the model at once.
BATCH = 8


class HeldOut(StageCallback):
    """Looks at held-out data every so many steps, keeps the best checkpoint, and stops when it does not get better.

    Rows go to `evaluation.jsonl` (`stage`, `step`, `data`, `loss`, ...; `data` is "all" in the row that decides what is
    best) and `samples.jsonl` (`stage`, `step`, `data`, `id`, `question`, `answer`, `prediction`, ...). Nothing here draws
    random numbers: a run that is watched has the same course as one that is not.

    Args:
        folder: the run folder.
        stage: name of the stage.
        settings: what to look at.
        datasets: name -> held-out records.
    """

    def __init__(
        self, folder: Path, stage: str, settings: EvaluateSection, datasets: Mapping[str, SampleDataset]
    ) -> None:
        self._losses, self._samples = folder / "evaluation.jsonl", folder / "samples.jsonl"
        self._stage, self._settings, self._datasets = stage, settings, datasets

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop rows after the step that the run continues from."""
        if state.is_world_process_zero:
            for path in (self._losses, self._samples):
                drop_lines_after(path, self._stage, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Look when it is time, and at the end of the stage."""
        done = state.global_step >= state.max_steps
        if state.global_step % self._settings.every and not done:
            return control
        value = self._evaluate(state)
        better = state.best_metric is None or (
            value < state.best_metric if self._settings.metric == "loss" else value > state.best_metric
        )
        if better:
            state.best_metric, state.best_global_step = value, state.global_step
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            control.should_save = not done  # the end of a stage is its finished checkpoint
        elif self._settings.patience is not None:
            assert state.best_global_step is not None
            looks = -(-(state.global_step - state.best_global_step) // self._settings.every)
            if looks >= self._settings.patience:
                logger.warning(
                    "Stage %s stops at step %d: no better %s.", self._stage, state.global_step, self._settings.metric
                )
                control.should_training_stop = True
        return control

    def _evaluate(self, state: TrainerState) -> float:
        """Write the rows of one look and return the metric that decides, over all data."""
        raise NotImplementedError


class Watch(HeldOut):
    """Loss and generated answers of a language stage.

    Its rows hold `loss` in nats per supervised token, `tokens`, and `accuracy` and `f1` of the generated answers.

    Args:
        folder, stage, settings, datasets: as for `HeldOut`.
        processor: encodes and decodes.
        packed: the LLM runs with the attention for packed rows.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        settings: EvaluateSection,
        datasets: Mapping[str, SampleDataset],
        processor: MedMVLProcessor,
        packed: bool,
    ) -> None:
        super().__init__(folder, stage, settings, datasets)
        self._processor = processor
        self._make_batch = BatchMaker(processor, packed, supervised_only=True)
        self._packed = packed

    def _evaluate(self, state: TrainerState) -> float:
        """Write the rows of one look and return the metric that decides, over all data, the same on every process."""
        model = self.trainer.applied.model
        losses, totals = [], torch.zeros(2, dtype=torch.float64)
        answers: list[dict[str, Any]] = []
        with evaluating(model):
            for name, dataset in self._datasets.items():
                sums = self._loss(model, dataset)
                totals += sums
                losses.append(self._row(state, name, sums))
            # Sharded weights are gathered by all processes together, so that all of them have to generate.
            if state.is_world_process_zero or self.trainer.trained.cut:
                answers = self._generate(model, state)
        losses.append(self._row(state, "all", totals))
        for row in losses:
            row |= judged([one for one in answers if row["data"] in ("all", one["data"])])
        if state.is_world_process_zero:
            append_rows(self._losses, losses)
            append_rows(self._samples, answers)
        return self._agreed(float(losses[-1].get(self._settings.metric, 0.0)))

    def _agreed(self, value: float) -> float:
        """Return the first process's value, which may be the only one that has seen answers."""
        if self.trainer.args.world_size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.trainer.args.device)
        dist.broadcast(shared, src=0)
        return float(shared)

    def _row(self, state: TrainerState, data: str, sums: torch.Tensor) -> dict[str, Any]:
        loss, tokens = float(sums[0] / sums[1]), int(sums[1])
        return {"stage": self._stage, "step": state.global_step, "data": data, "loss": loss, "tokens": tokens}

    def _loss(self, model: MedMVLForConditionalGeneration, dataset: SampleDataset) -> torch.Tensor:
        """Return (2,) float64: summed negative log-likelihood and number of supervised tokens, over all devices."""
        args = self.trainer.args
        count = min(self._settings.samples, len(dataset))
        chosen = range(count)[args.process_index :: args.world_size]
        sums = torch.zeros(2, dtype=torch.float64)
        # Sharded weights are gathered by all processes together: each runs as many batches as the busiest one, the last
        # ones without weight.
        for start in range(0, -(-count // args.world_size), BATCH):
            mine = chosen[start : start + BATCH]
            batch = self._make_batch([self._encode(dataset, index) for index in mine or (0,)])
            if not mine:
                batch["supervised"] = 0
            supervised = batch["supervised"]
            inputs = {
                key: value for key, value in batch.items() if key not in ("ids", "tokens", "positions", "supervised")
            }
            with self.trainer.accelerator.autocast():
                prepared = self.trainer._prepare_inputs(inputs)
                loss = model(**prepared, use_cache=False, cross_entropy=self.trainer.cross_entropy).loss
            sums += torch.tensor([float(loss) * supervised, supervised], dtype=torch.float64)
        if args.world_size > 1:
            sums = sums.to(args.device)
            dist.all_reduce(sums)
        return sums.cpu()

    def _encode(self, dataset: SampleDataset, index: int) -> dict[str, Any]:
        sample = dataset[index]
        if sample.messages[-1].role != "assistant":
            if sample.answer is None:
                raise DataError(f"{dataset.where(index)}, record {sample.id!r}: it has no answer to compare with.")
            sample = replace(sample, messages=(*sample.messages, Message("assistant", sample.answer)))
        return {"id": sample.id, **self._processor.encode(sample, train=True)}

    def _generate(self, model: MedMVLForConditionalGeneration, state: TrainerState) -> list[dict[str, Any]]:
        """Answer the first records of each data set greedily; return the answers beside the true ones."""
        rows = []
        for name, dataset in self._datasets.items():
            for index in range(min(self._settings.generate, len(dataset))):
                sample = dataset[index].as_question()
                inputs = self._processor.collate([self._processor.encode(sample, train=False)], padding_side="left")
                with attention(model.language_model, "sdpa" if self._packed else None):
                    ids = model.generate(
                        **self.trainer._prepare_inputs(inputs),
                        max_new_tokens=self._settings.max_new_tokens,
                        do_sample=False,
                        use_cache=True,
                    )
                answer = ids[0, inputs["input_ids"].shape[1] :]
                row = {"stage": self._stage, "step": state.global_step, "data": name, "id": sample.id}
                row |= {"question": sample.messages[-1].text, "answer": sample.answer}
                rows.append(row | {"prediction": self._processor.tokenizer.decode(answer, skip_special_tokens=True)})
        return rows


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout, autograd and compiled layers (whose forms are for training's lengths) off for a while."""
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train()


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a file of JSON Lines."""
    with path.open("a", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class Average(StageCallback):
    """An exponential moving average of the trained weights (Polyak averaging).

    The decay grows with the steps, min(decay, (1 + n) / (10 + n)), so that early weights do not linger.

    Args:
        decay: of the average.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self.values: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start from the weights, unless a checkpoint brought an average."""
        if not self.values:
            self.start()

    def start(self) -> None:
        """Make the average equal to the weights."""
        self.values = {name: p.detach().clone() for name, p in self.trainer.applied.trainable().items()}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the average towards the new weights."""
        decay = min(self._decay, (1 + state.global_step) / (10 + state.global_step))
        for name, parameter in self.trainer.applied.trainable().items():
            self.values[name].lerp_(parameter.detach(), 1 - decay)

    def apply(self) -> None:
        """Put the average into the model."""
        with torch.no_grad():
            for name, parameter in self.trainer.applied.trainable().items():
                parameter.copy_(self.values[name])
