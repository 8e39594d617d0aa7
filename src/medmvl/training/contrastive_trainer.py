"""The contrastive loss of a whole step, however many devices and micro-batches share it.

Every pair is compared with every other one of the step, so micro-batches cannot each have a loss of their own. What is
done is GradCache (Gao et al. 2021, arXiv 2101.06983): features of all micro-batches without autograd, gathered over the
devices; the loss and its gradient by every feature; then each micro-batch once more with autograd, where the gradient
of its features is handed in. It is exact: 8 at once, 8 times 1, and 4 on each of 2 devices give the same loss and
gradients. A device that takes its share of a step at once runs it once only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medmvl.models.contrastive import DualEncoder, DualEncoderOutput, Pairing
from medmvl.models.contrastive.losses import contrastive_loss
from medmvl.processing.pairs import PairProcessor
from medmvl.training.stage import AppliedStage
from medmvl.training.trainer import StageTrainer

#: What of a batch goes into the model.
INPUTS = ("pixels", "input_ids", "attention_mask")


@dataclass(frozen=True)
class PairBatches:
    """Encoded pairs become a batch; see `medmvl.training.batches.BatchMaker`, whose place it takes.

    Attributes:
        processor: pads.
        packed: never; an encoder of texts takes rows.
    """

    processor: PairProcessor
    packed: bool = False

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the model's inputs, the keys of the pairs, and `ids`, `tokens`, `positions`, `supervised` for the log.

        Tokens are those of the texts; `supervised` counts the pairs, since these are what the loss is a mean over.
        """
        for pair in pairs:
            if "error" in pair:
                return {"error": pair["error"]}
        batch = self.processor.collate(pairs)
        batch["ids"] = [pair["id"] for pair in pairs]
        batch["tokens"] = sum(len(pair["input_ids"]) for pair in pairs)
        batch["positions"] = batch["input_ids"].numel()
        batch["supervised"] = len(pairs)
        return batch


@dataclass
class _Handed:
    """What a micro-batch of the second run is handed.

    Attributes:
        media, texts: (n, dim), gradients of the loss by its features.
        generators: states of the random numbers that the first run drew, so that dropout is the same.
    """

    media: Tensor
    texts: Tensor
    generators: _Generators


class ContrastiveTrainer(StageTrainer):
    """Runs a contrastive stage; arguments as for `StageTrainer`."""

    def __init__(self, applied: AppliedStage, *args: Any, **kwargs: Any) -> None:
        super().__init__(applied, *args, **kwargs)
        self.loss_is_scaled_for_ga = True
        self._waiting: list[dict[str, Any]] = []
        self._handed: deque[_Handed] = deque()
        self._step: _StepLoss | None = None

    @property
    def _dual(self) -> DualEncoder:
        model: Any = self.applied.model
        assert isinstance(model, DualEncoder)
        return model

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Collect a step's micro-batches, and keep them at hand: its loss needs all of them."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._waiting = batches
        return batches, count

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return a scalar whose value is this micro-batch's share of the step's loss, and whose gradients are the step's.

        Data parallelism takes the mean of the devices' gradients, which is why those of features are multiplied by their
        number; the temperature's and the bias's are the same on all devices.
        """
        handed = self._handed.popleft() if self._handed else None
        with handed.generators.restored() if handed is not None else nullcontext():
            output: DualEncoderOutput = model(**{key: inputs[key] for key in INPUTS})
        assert output.media is not None
        assert output.texts is not None
        assert output.log_scale is not None
        if handed is None:
            self._step, (handed,) = self._loss_and_gradients([(output.media, output.texts)], [inputs], [_Generators()])
        step, world = self._step, self.args.world_size
        assert step is not None
        by_features = (output.media * handed.media).sum() + (output.texts * handed.texts).sum()
        total = world * by_features + output.log_scale * step.by_log_scale / step.micro_batches
        if output.bias is not None and step.by_bias is not None:
            total = total + output.bias * step.by_bias / step.micro_batches
        self._finite = torch.isfinite(output.media).all() & torch.isfinite(output.texts).all()
        return total - total.detach() + step.loss / step.micro_batches

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward of a micro-batch.

        All micro-batches share one loss; whose records are suspect if it is not finite is told by their features.
        """
        if (
            self._waiting
        ):  # the first one of a step; not before, since a resumed run gets its random numbers back only now
            waiting, self._waiting = self._waiting, []
            self._dual.limit_scale()
            if len(waiting) > 1:
                self._run_ahead(waiting)
        loss = super().training_step(*args, **kwargs)
        self.facts.losses[-1] = torch.where(self._finite, 0.0, torch.nan)
        return loss

    def _run_ahead(self, batches: list[dict[str, Any]]) -> None:
        """Run all micro-batches of a step without autograd and keep what the second run of each is to be handed."""
        features, generators = [], []
        self._dual.train()
        inputs = [self._prepare_inputs(batch) for batch in batches]
        with torch.no_grad(), self.accelerator.autocast():
            for batch in inputs:
                generators.append(_Generators.now(self.args.device))
                output = self._dual(**{key: batch[key] for key in INPUTS})
                features.append((output.media, output.texts))
        self._step, handed = self._loss_and_gradients(features, inputs, generators)
        self._handed = deque(handed)

    def _loss_and_gradients(
        self, features: list[tuple[Tensor, Tensor]], inputs: list[dict[str, Any]], generators: list[_Generators]
    ) -> tuple[_StepLoss, list[_Handed]]:
        """Return the loss of the pairs of all devices, and its gradients by this device's features, per micro-batch."""
        counts = [len(media) for media, _ in features]
        media, own = gather_rows(torch.cat([media.detach() for media, _ in features]))
        texts, _ = gather_rows(torch.cat([texts.detach() for _, texts in features]))
        keys = [gather_rows(torch.cat([batch[key] for batch in inputs]))[0] for key in ("media_key", "text_key")]
        head = self._dual.head
        leaves = [media.requires_grad_(), texts.requires_grad_(), head.log_scale.detach().clone().requires_grad_()]
        bias = None if head.bias is None else head.bias.detach().clone().requires_grad_()
        wanted = leaves if bias is None else [*leaves, bias]
        loss = contrastive_loss(
            self._dual.config.spec.loss, media, texts, Pairing(*keys).texts_of(), leaves[2].float(), bias
        )
        gradients = torch.autograd.grad(loss, wanted)
        step = _StepLoss(loss.detach(), len(features), gradients[2], gradients[3] if bias is not None else None)
        shares = zip(gradients[0][own].split(counts), gradients[1][own].split(counts), generators, strict=True)
        return step, [_Handed(*share) for share in shares]


@dataclass
class _StepLoss:
    """The loss of a step, and its gradients by what is not a feature."""

    loss: Tensor
    micro_batches: int
    by_log_scale: Tensor
    by_bias: Tensor | None


@dataclass
class _Generators:
    """States of the random number generators of this process."""

    cpu: Tensor | None = None
    cuda: Tensor | None = None

    @classmethod
    def now(cls, device: torch.device) -> _Generators:
        """Return the present states."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Go back to these states for a while."""
        if self.cpu is None:
            yield
            return
        with torch.random.fork_rng(devices=[] if self.cuda is None else [torch.cuda.current_device()]):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda)
            yield


def gather_rows(rows: Tensor) -> tuple[Tensor, slice]:
    """Return the rows of all processes, in the order of their ranks, and where this process's own lie among them.

    Processes may have different numbers of rows. No gradient flows; with one process the rows come back as they are.

    Args:
        rows: (n, ...), detached.
    """
    if not dist.is_initialized():
        return rows, slice(0, len(rows))
    world, rank = dist.get_world_size(), dist.get_rank()
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(count) for count in counts]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    received = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(received, padded.contiguous())
    whole = torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])
    start = sum(sizes[:rank])
    return whole, slice(start, start + sizes[rank])
