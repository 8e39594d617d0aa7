"""The contrastive loss of a whole step over all devices and micro-batches (GradCache, Gao et al. 2021, arXiv 2101.06983).

Every pair is compared with every other pair of the step, so micro-batches have no separate losses. First, features of
all micro-batches are computed without autograd and gathered over the devices. Then the loss and its gradient with respect to
every feature are computed. Finally each micro-batch runs again with autograd, and the gradient of its features is
propagated. Loss and gradients equal those of one large batch (tested: 8 at once, 8 times 1, and 4 on each of 2 devices). A
device with one micro-batch per step runs it only once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medmvl.models.contrastive import DualEncoder, DualEncoderOutput, Pairing
from medmvl.models.contrastive.losses import contrastive_loss
from medmvl.training.engine.batch import Batch
from medmvl.training.engine.devices import Engine
from medmvl.training.engine.distributed import gather_rows
from medmvl.training.objectives.base import StepResult

#: Entries of a batch that are arguments of the dual encoder; the others are keys of the pairs.
INPUTS = ("pixels", "input_ids", "attention_mask")


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step, and its gradients with respect to values that are not features.

    Attributes:
        loss: scalar.
        micro_batches: number of this device's micro-batches.
        by_log_scale: scalar gradient with respect to the logarithm of the scale.
        by_bias: scalar gradient with respect to the sigmoid loss's bias, if it has one.
    """

    loss: Tensor
    micro_batches: int
    by_log_scale: Tensor
    by_bias: Tensor | None


@dataclass(frozen=True)
class FeatureGradients:
    """Gradients of the loss with respect to the features of one micro-batch.

    Attributes:
        visual, texts: (n, dim).
        generators: states of the random number generators before its first run, so that dropout is the same in the second.
    """

    visual: Tensor
    texts: Tensor
    generators: Generators


@dataclass(frozen=True)
class Generators:
    """States of the random number generators of this process."""

    cpu: Tensor | None = None
    cuda: Tensor | None = None

    @classmethod
    def now(cls, device: torch.device) -> Generators:
        """Return the current states."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore these states within a context."""
        if self.cpu is None:
            yield
            return
        with torch.random.fork_rng(devices=[] if self.cuda is None else [torch.cuda.current_device()]):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda)
            yield


def contrastive_step(engine: Engine, dual: DualEncoder, batches: Sequence[Batch]) -> StepResult:
    """Run forward and backward passes of one step of the contrastive loss.

    Args:
        engine: runs the model.
        dual: the dual encoder inside `engine.model`.
        batches: this device's micro-batches of pairs.
    """
    dual.limit_scale()
    inputs = [engine.to_device(batch.inputs) for batch in batches]
    step, gradients = _first_run(engine, dual, inputs) if len(inputs) > 1 else (None, None)
    total, evidence = torch.zeros((), device=engine.device), []
    for index, batch in enumerate(inputs):
        with engine.accumulating(last=index == len(inputs) - 1):
            with engine.autocast():
                given = gradients[index] if gradients is not None else None
                with given.generators.restored() if given is not None else Generators().restored():
                    output: DualEncoderOutput = engine.model(**_arguments(batch))
                visual, texts = _features(output)
                if step is None or given is None:
                    step, (given,) = _loss_and_gradients(dual, [(visual, texts)], inputs, [Generators()])
                loss = _surrogate(output, given, step, engine.world)
            total = total + engine.backward(loss)
        finite = torch.isfinite(visual).all() & torch.isfinite(texts).all()
        # All micro-batches share one loss, so their features tell whose records are suspect if it is not finite.
        evidence.append(torch.where(finite, 0.0, torch.nan))
    return StepResult(total, evidence)


def _first_run(
    engine: Engine, dual: DualEncoder, inputs: Sequence[Mapping[str, Any]]
) -> tuple[StepLoss, list[FeatureGradients]]:
    """Run all micro-batches without autograd; return the step's loss and the gradients for their second runs."""
    features, generators = [], []
    with torch.no_grad(), engine.autocast():
        for batch in inputs:
            generators.append(Generators.now(engine.device))
            features.append(_features(dual(**_arguments(batch))))
    return _loss_and_gradients(dual, features, inputs, generators)


def _loss_and_gradients(
    dual: DualEncoder,
    features: Sequence[tuple[Tensor, Tensor]],
    inputs: Sequence[Mapping[str, Any]],
    generators: Sequence[Generators],
) -> tuple[StepLoss, list[FeatureGradients]]:
    """Return the loss over the pairs of all devices, and its gradients with respect to this device's features."""
    counts = [len(visual) for visual, _ in features]
    visual, own = gather_rows(torch.cat([visual.detach() for visual, _ in features]))
    texts, _ = gather_rows(torch.cat([texts.detach() for _, texts in features]))
    keys = [gather_rows(torch.cat([batch[key] for batch in inputs]))[0] for key in ("visual_key", "text_key")]
    head = dual.head
    leaves = [visual.requires_grad_(), texts.requires_grad_(), head.log_scale.detach().clone().requires_grad_()]
    bias = None if head.bias is None else head.bias.detach().clone().requires_grad_()
    wanted = leaves if bias is None else [*leaves, bias]
    loss = contrastive_loss(dual.config.spec.loss, visual, texts, Pairing(*keys).texts_of(), leaves[2].float(), bias)
    gradients = torch.autograd.grad(loss, wanted)
    step = StepLoss(loss.detach(), len(features), gradients[2], gradients[3] if bias is not None else None)
    shares = zip(gradients[0][own].split(counts), gradients[1][own].split(counts), generators, strict=True)
    return step, [FeatureGradients(*share) for share in shares]


def _surrogate(output: DualEncoderOutput, given: FeatureGradients, step: StepLoss, world: int) -> Tensor:
    """Return a scalar whose value is a micro-batch's share of the step's loss, and whose gradients are the step's.

    Data parallelism averages the gradients of the devices, which is why those of features are multiplied by the number of
    devices. The gradients of temperature and bias are the same on all devices.
    """
    visual, texts = _features(output)
    assert output.log_scale is not None
    total = world * ((visual * given.visual).sum() + (texts * given.texts).sum())
    total = total + output.log_scale * step.by_log_scale / step.micro_batches
    if output.bias is not None and step.by_bias is not None:
        total = total + output.bias * step.by_bias / step.micro_batches
    return total - total.detach() + step.loss / step.micro_batches


def _features(output: DualEncoderOutput) -> tuple[Tensor, Tensor]:
    assert output.visual is not None
    assert output.texts is not None
    return output.visual, output.texts


def _arguments(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: batch[key] for key in INPUTS}
