"""A small training objective of a plugin: next-token prediction in which short answers weigh more."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.labels import count_supervised, shift_labels
from medmvl.processing import MedMVLProcessor
from medmvl.training.cost import PartCost, SampleSize, StageCosts
from medmvl.training.engine.batch import Batch
from medmvl.training.engine.distributed import barrier, is_main_process
from medmvl.training.engine.trainable import Adaptation, freeze_and_adapt
from medmvl.training.objectives import Objective, register_objective
from medmvl.training.objectives.base import Evaluation, StepResult
from medmvl.training.recipe import StageSection

SHORT = 3


class RewardedStage(StageSection):
    """A stage that rewards short answers."""

    metrics = ("loss", "reward")

    objective: Literal["rewarded"]
    """The name of the objective."""
    reward_short: float = 1.0
    """Weight of answers of at most three tokens."""


class RewardedCosts(StageCosts):
    def __init__(self, described):
        self.described = described

    def measure(self, sample):
        ids, _ = self.described.processor.encode_text(sample)
        return SampleSize(len(ids), len(ids), len(ids))

    def parts(self, lengths, per_step):
        parameters = self.described.budget.parameters["llm"]
        return {"llm": PartCost(parameters, parameters, lengths.tokens * per_step, 32, 2, backward=True)}


@register_objective
class RewardedObjective(Objective):
    section = RewardedStage

    def __init__(self, model, processor, adaptation, reward_short):
        self.model, self.processor, self.adaptation, self.reward_short = model, processor, adaptation, reward_short

    @classmethod
    def load(cls, context):
        source = context.ready_source()
        model = MedMVLForConditionalGeneration.from_pretrained(source)
        processor = MedMVLProcessor.from_pretrained(source)
        return cls(model, processor, Adaptation.of(context.stage), context.stage.reward_short)

    @classmethod
    def costs(cls, context, described):
        return RewardedCosts(described)

    def adapt(self):
        self.trainable = freeze_and_adapt(self.model, self.adaptation)

    def encode(self, sample):
        return self.processor.encode(sample)

    def size(self, sample):
        return "", float(sum(len(message.text) for message in sample.messages))

    def collate(self, samples):
        for sample in samples:
            if sample.error is not None:
                return Batch(error=sample.error)
        inputs = dict(self.processor.collate([sample.inputs for sample in samples]))
        tokens = sum(len(sample.inputs["input_ids"]) for sample in samples)
        ids = tuple(sample.id for sample in samples)
        return Batch(inputs, ids, tokens, inputs["input_ids"].numel(), count_supervised(inputs["labels"]))

    def loss(self, model, inputs):
        targets = shift_labels(inputs.pop("labels"))
        logits = model(**inputs, use_cache=False).logits
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        short = (targets != -100).sum(1) <= SHORT
        weights = torch.where(short, self.reward_short, 1.0)
        return (losses.view(targets.shape) * weights[:, None]).sum()

    def step(self, engine, batches, supervised):
        total, shares = torch.zeros((), device=engine.device), []
        for index, batch in enumerate(batches):
            with engine.accumulating(last=index == len(batches) - 1):
                with engine.autocast():
                    loss = self.loss(engine.model, engine.to_device(batch.inputs)) / supervised * engine.world
                shares.append(engine.backward(loss))
            total = total + shares[-1]
        return StepResult(total, shares)

    def evaluate(self, engine, datasets):
        rows = []
        for name, dataset in datasets.items():
            inputs = dict(self.processor.collate([self.processor.encode(dataset[i]) for i in range(4)]))
            rows.append({"data": name, "loss": float(self.loss(self.model, engine.to_device(inputs)))})
        loss = sum(row["loss"] for row in rows)
        rows.append({"data": "all", "loss": loss, "reward": -loss})
        return Evaluation(rows, metrics={"loss": loss, "reward": -loss})

    def finish(self, engine, context):
        if is_main_process():
            context.save(self.trainable.finish().save_pretrained, self.processor)
        barrier()
