"""Settings and progress of the training loop, as callbacks see them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop.

    Attributes:
        stage: name of the stage.
        steps: number of optimizer steps.
        seed: of dropout.
        checkpoints: folder of the checkpoints to resume from.
        scheduler: name of the learning rate schedule, see `lr_lambda`.
        warmup: steps of the warm-up.
        max_grad_norm: gradients are clipped to this norm; 0 does not clip.
        keep: number of checkpoints that are kept.
        stop_after_nans: steps without a finite gradient in a row after which the run stops.
        workers: data loader processes; 0 loads in this process.
        prefetch: batches that each of them prepares ahead.
    """

    stage: str
    steps: int
    seed: int
    checkpoints: Path
    scheduler: str = "cosine"
    warmup: int = 0
    max_grad_norm: float = 1.0
    keep: int = 2
    stop_after_nans: int = 5
    workers: int = 0
    prefetch: int = 4


@dataclass
class LoopState:
    """Progress of a stage; a checkpoint holds it.

    Attributes:
        step: optimizer steps done.
        best_metric: best value of the validation metric so far.
        best_step: the step at which it was reached.
    """

    step: int = 0
    best_metric: float | None = None
    best_step: int | None = None


@dataclass
class StepFacts:
    """Facts of one optimizer step for the log.

    Attributes:
        tokens: without padding, over all devices.
        positions: with padding, over all devices.
        supervised: terms of the loss, over all devices.
        ids: records of this device, per micro-batch.
        evidence: a scalar per micro-batch of this device; not finite if its records caused a loss that is not.
        loss: mean over all devices.
        lr: learning rate of the part that trains fastest.
        grad_norm: before clipping.
        skipped: whether the gradient was not finite and the weights did not change.
        started: time at which the step began, from `time.perf_counter`.
    """

    tokens: int = 0
    positions: int = 0
    supervised: int = 0
    ids: list[tuple[str, ...]] = field(default_factory=list)
    evidence: list[Tensor] = field(default_factory=list)
    loss: float = math.nan
    lr: float = 0.0
    grad_norm: float = math.nan
    skipped: bool = False
    started: float = field(default_factory=time.perf_counter)

    def suspects(self) -> list[str]:
        """Return the ids of the micro-batches whose loss is not finite; all ids if every loss is finite."""
        bad = [ids for ids, loss in zip(self.ids, self.evidence, strict=False) if not torch.isfinite(loss)]
        return [identifier for ids in bad or self.ids for identifier in ids]

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second since the step began."""
        return self.tokens / max(time.perf_counter() - self.started, 1e-9)
