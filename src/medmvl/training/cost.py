"""Estimates of a stage's cost from its numbers alone: memory per device, FLOPs per step, hours on given hardware.

They are meant for planning and accurate to about a third. Sources: 6 FLOPs per trained parameter and token (Kaplan et al.,
arXiv 2001.08361), activation memory without attention matrices (Korthikanti et al., arXiv 2205.05198, eq. 2), AdamW in
mixed precision: fp32 weight, gradient and two moments, 16 bytes per trained parameter.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from medmvl.data.sample import Sample
from medmvl.errors import RecipeError, did_you_mean
from medmvl.models import MedMVLConfig
from medmvl.models.budget import Budget
from medmvl.processing import MedMVLProcessor

#: Dense bf16 matrix peak in TFLOP/s and memory in GB, from the vendors' data sheets.
DEVICES: dict[str, tuple[float, float]] = {
    "T4": (65, 16),  # fp16; it has no bf16
    "V100-32GB": (125, 32),  # fp16; it has no bf16
    "A10": (125, 24),
    "L4": (121, 24),
    "L40S": (362, 48),
    "RTX3090": (71, 24),
    "RTX4090": (165, 24),
    "A6000": (155, 48),
    "A100-40GB": (312, 40),
    "A100-80GB": (312, 80),
    "H100-80GB": (989, 80),
    "H200": (989, 141),
}

#: Fraction of the peak that such a training step typically reaches on one node.
UTILIZATION = 0.4


@dataclass(frozen=True)
class Hardware:
    """A number of equal devices."""

    name: str
    count: int
    tflops: float
    gigabytes: float

    @classmethod
    def parse(cls, text: str) -> Hardware:
        """Return the hardware of a line such as "2xA100-80GB" or "H200".

        Raises:
            RecipeError: for an unknown device.
        """
        match = re.fullmatch(r"(?:(\d+)\s*x\s*)?(\S+)", text.strip())
        count, name = (int(match[1] or 1), match[2]) if match else (1, text)
        if name not in DEVICES or count < 1:
            raise RecipeError(f"Unknown hardware {text!r}; write it as 2xA100-80GB. {did_you_mean(name, DEVICES)}")
        return cls(name, count, *DEVICES[name])

    def hours(self, flops: float) -> float:
        """Return the hours that a number of FLOPs takes on all devices together."""
        return flops / (self.count * self.tflops * 1e12 * UTILIZATION) / 3600


@dataclass(frozen=True)
class StagePlan:
    """Steps, tokens and cost of a stage.

    Attributes:
        name: of the stage.
        steps: optimizer steps.
        records: records seen.
        tokens: mean tokens of a step; `supervised` of them carry the loss.
        longest: tokens of the longest record.
        flops: per step.
        gigabytes: needed per device.
        hours: on the hardware, if one was named.
        truncated: records whose text is truncated (of a contrastive stage).
    """

    name: str
    steps: int
    records: int
    tokens: float
    supervised: float
    longest: int
    flops: float
    gigabytes: float
    hours: float | None
    truncated: int = 0


@dataclass(frozen=True)
class SampleSize:
    """Size of one sample.

    Attributes:
        tokens: positions that the model processes.
        supervised: tokens with a label.
        length: tokens of the sample itself, without padding.
        images, volumes: their numbers.
        truncated: whether its text is truncated.
    """

    tokens: int
    supervised: int
    length: int
    images: int = 0
    volumes: int = 0
    truncated: bool = False


@dataclass(frozen=True)
class Lengths:
    """Sums over an epoch of a mixture; a record counts as often as it is seen.

    Attributes:
        count: records.
        tokens, supervised, images, volumes: sums of the values of `SampleSize`.
        longest: largest `length`.
        truncated: distinct records whose text is truncated.
    """

    count: float
    tokens: float
    supervised: float
    images: float
    volumes: float
    longest: int
    truncated: int


@dataclass(frozen=True)
class PartCost:
    """One part of the model in a stage.

    Attributes:
        parameters: all of the part.
        trained: those that get a gradient (adapters, with LoRA).
        tokens: positions that it processes per step.
        width: hidden size.
        layers: number of layers.
        backward: whether gradients flow through it (it trains, or a part before it does).
        checkpointing: its activations are recomputed.
    """

    parameters: int
    trained: int
    tokens: float
    width: int
    layers: int
    backward: bool
    checkpointing: bool = False

    @property
    def flops(self) -> float:
        """FLOPs of a step: 2 per parameter and token forward (twice with checkpointing), 2 for the inputs' gradient, 2 for
        the weights'."""
        forward = 2 * self.parameters * (2 if self.checkpointing and self.backward else 1)
        return self.tokens * (forward + (2 * self.parameters if self.backward else 0) + 2 * self.trained)

    def activation_bytes(self, tokens: float) -> float:
        """Bytes kept for the backward pass of `tokens` positions: 34 per unit and layer, 2 with checkpointing."""
        if not self.backward:
            return 0.0
        per_unit = 2 if self.checkpointing else 34
        return tokens * self.width * self.layers * per_unit


@dataclass(frozen=True)
class Shards:
    """Number of devices over which a step's values are sharded.

    Attributes:
        weights: the model's weights.
        gradients: of what trains, together with the optimizer's fp32 copies and moments.
    """

    weights: int = 1
    gradients: int = 1

    @classmethod
    def of(cls, strategy: str, world: int) -> Shards:
        """Return the sharding of `run.strategy` on `world` devices."""
        return cls(world if strategy in ("fsdp", "zero3") else 1, world if strategy != "ddp" else 1)


def memory_bytes(
    parts: list[PartCost],
    micro_batches: float,
    head_positions: float,
    vocabulary: int,
    *,
    half: bool,
    shards: Shards = Shards(),
) -> float:
    """Return the bytes a device needs for a step.

    Args:
        micro_batches: micro-batches of a step over all devices; only one at a time has activations in memory.
        head_positions: positions per micro-batch whose logits are made.
        vocabulary: of the LLM.
        half: frozen weights and activations in two bytes instead of four.
        shards: how values are sharded.
    """
    trained = sum(part.trained for part in parts)
    frozen = sum(part.parameters - min(part.trained, part.parameters) for part in parts)
    weights = (4 * trained + (2 if half else 4) * frozen) / shards.weights + 12 * trained / shards.gradients
    scale = 1.0 if half else 2.0
    activations = sum(scale * part.activation_bytes(part.tokens / micro_batches) for part in parts)
    # Logits, their softmax and their gradient, in fp32.
    return weights + activations + head_positions * vocabulary * 12


@dataclass(frozen=True)
class ModelDescription:
    """A model before a weight is made or read.

    Attributes:
        config: of the model.
        processor: of the model.
        budget: its parameters and visual tokens.
    """

    config: MedMVLConfig
    processor: MedMVLProcessor
    budget: Budget


class StageCosts(ABC):
    """Interface by which a dry run asks an objective for the costs of a stage.

    Attributes:
        budget: parameters of a model of the stage's own, to be printed under `title`; None if it is the recipe's.
        vocabulary: of the LLM, for the memory of logits.
    """

    budget: Budget | None = None
    title: str = ""
    vocabulary: int = 0

    @abstractmethod
    def measure(self, sample: Sample) -> SampleSize:
        """Return the size of a sample.

        Raises:
            DataError: if the sample cannot be used.
        """

    def check_held_out(self, sample: Sample) -> None:
        """Raise if a sample cannot be used for validation.

        Raises:
            DataError: if the sample cannot be used.
        """
        self.measure(sample)

    @abstractmethod
    def parts(self, lengths: Lengths, per_step: float) -> dict[str, PartCost]:
        """Return part -> its cost per step; `per_step` times `lengths` are the sums of a step."""

    def logit_positions(self, lengths: Lengths, per_micro_batch: float) -> float:
        """Return the positions whose logits are in memory together."""
        return 0.0

    def step_tokens(self, lengths: Lengths, per_step: float, parts: dict[str, PartCost]) -> tuple[float, float]:
        """Return the tokens of a step, and those with a label."""
        return lengths.tokens * per_step, lengths.supervised * per_step

    def extra_flops(self, parts: dict[str, PartCost], accumulation: int) -> float:
        """Return FLOPs of a step besides those of `PartCost`."""
        return 0.0


def recomputes(chosen: bool | Sequence[str], part: str) -> bool:
    """Whether a part recomputes its activations, by a stage's `activation_checkpointing`."""
    return chosen if isinstance(chosen, bool) else part in chosen
