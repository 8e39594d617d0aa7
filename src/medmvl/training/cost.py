"""What a stage will cost, from its numbers alone: memory per device, FLOPs per step, hours on given hardware.

These are estimates for planning, good to about a third. Sources: 6 FLOPs per trained parameter and token (Kaplan et al.,
arXiv 2001.08361), activation memory without attention matrices (Korthikanti et al., arXiv 2205.05198, eq. 2), AdamW in
mixed precision: fp32 weight, gradient and two moments, 16 bytes per trained parameter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from medmvl.errors import DataError, RecipeError, did_you_mean

#: Dense bf16 matrix peak in TFLOP/s and memory in GB, from the makers' data sheets.
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

#: Share of the peak that a training step of this kind reaches; what well-kept code does on one node.
UTILISATION = 0.4

#: A dry run names so many faulty records and then only counts them.
NAMED_FAULTS = 20


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
        """Return how long so many FLOPs take on all devices together."""
        return flops / (self.count * self.tflops * 1e12 * UTILISATION) / 3600


@dataclass(frozen=True)
class StagePlan:
    """What a stage will do and cost.

    Attributes:
        name: of the stage.
        steps: optimiser steps.
        records: records seen.
        tokens: mean tokens of a step; `supervised` of them carry the loss.
        longest: tokens of the longest record.
        flops: per step.
        gigabytes: needed per device.
        hours: on the hardware, if one was named.
        cut: records of which a part will not be seen: texts of a contrastive stage that are too long.
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
    cut: int = 0


def refuse_faulty(faults: list[str]) -> None:
    """Raise if records cannot be used.

    Raises:
        DataError: naming the first of them.
    """
    if faults:
        more = f"\n  ... and {len(faults) - NAMED_FAULTS} more" if len(faults) > NAMED_FAULTS else ""
        raise DataError("\n  ".join([f"{len(faults)} record(s) cannot be used:", *faults[:NAMED_FAULTS]]) + more)


@dataclass(frozen=True)
class PartCost:
    """One part of the model in a stage.

    Attributes:
        parameters: all of the part.
        trained: those that get a gradient (adapters, with LoRA).
        tokens: positions that go through it per step.
        width: hidden size.
        layers: number of layers.
        backward: gradients flow through it (it trains, or something before it does).
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
    """Among how many devices the things that a step keeps are spread.

    Attributes:
        weights: the model's weights.
        gradients: of what trains, together with the optimiser's fp32 copies and moments.
    """

    weights: int = 1
    gradients: int = 1

    @classmethod
    def of(cls, strategy: str, world: int) -> Shards:
        """Return what `run.strategy` spreads over `world` devices."""
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
        micro_batches: micro-batches of a step over all devices; activations of one are held at a time.
        head_positions: positions per micro-batch whose logits are made.
        vocabulary: of the LLM.
        half: frozen weights and activations in two bytes instead of four.
        shards: what is spread over devices.
    """
    trained = sum(part.trained for part in parts)
    frozen = sum(part.parameters - min(part.trained, part.parameters) for part in parts)
    weights = (4 * trained + (2 if half else 4) * frozen) / shards.weights + 12 * trained / shards.gradients
    scale = 1.0 if half else 2.0
    activations = sum(scale * part.activation_bytes(part.tokens / micro_batches) for part in parts)
    # Logits, their softmax and their gradient, in fp32.
    return weights + activations + head_positions * vocabulary * 12
