"""Devices and processes of a stage, by `accelerate`: placement, autocast, and the reduction of gradients."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from medmvl.training.acceleration.deepspeed import ZeroState, zero_optimizer
from medmvl.training.engine.distributed import PATIENCE
from medmvl.training.engine.state import TrainedState


def new_accelerator(precision: str, cpu: bool, deepspeed: Any = None) -> Accelerator:
    """Return accelerate's interface to the devices, for one stage.

    Args:
        precision: "fp32", "bf16" or "fp16".
        cpu: use the CPU even if there is an accelerator.
        deepspeed: accelerate's DeepSpeedPlugin; None for other strategies.
    """
    # accelerate keeps its settings per process, and every stage has its own. It has no public way to reset them;
    # transformers' Trainer does the same.
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=cpu, timeout=PATIENCE)
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=cpu and deepspeed is None,  # with cpu=True accelerate ignores DeepSpeed
        deepspeed_plugin=deepspeed,
        # The model uses every trainable weight in every step.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=False)],
    )
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # it would turn DeepSpeed on for later stages, too
    return accelerator


class Engine:
    """A model and its optimizer, prepared for the devices.

    Args:
        accelerator: from `new_accelerator`.
        model: what trains; with FSDP2 already sharded.
        optimizer: of its trainable parameters.

    Attributes:
        module: the model as given.
        model: the model to call in a training step; it may be wrapped.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator, self.module = accelerator, model
        self._sharded_by_fsdp = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        self.model: nn.Module
        if self._sharded_by_fsdp:
            # Its placement and gradient reduction are done; accelerate adds autocast and must not wrap it in DDP.
            self.model = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
            self.optimizer: Any = accelerator.prepare(optimizer)
        else:
            self.model, self.optimizer = accelerator.prepare(model, optimizer)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def world(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed runs the model."""
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a piece of every weight or optimizer value."""
        return self._sharded_by_fsdp or self.is_deepspeed

    def trained_state(self, parameters: Mapping[str, nn.Parameter]) -> TrainedState:
        """Return trained weights and optimizer state, to read and write them.

        Args:
            parameters: name -> parameter, of all that train.
        """
        zero = zero_optimizer(self.optimizer)
        if zero is not None:
            return ZeroState(parameters, zero, self.rank, self.world)
        return TrainedState(parameters, self.optimizer.optimizer, self.rank, self.world)  # torch's, inside accelerate's

    def to_device(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs with their tensors on the device; DeepSpeed also wants floats in its own dtype."""
        half = self.is_deepspeed and self.accelerator.mixed_precision == "bf16"

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(self.device, torch.bfloat16 if half and value.is_floating_point() else None)

        return {key: move(value) for key, value in inputs.items()}

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the stage's precision applies."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def leave_autocast(self) -> None:
        """Let the model's forward pass run outside of autocast, into which accelerate has wrapped it."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Run a micro-batch; gradients are reduced over the processes after the last one of a step only."""
        self.accelerator.sync_gradients = last
        if last or self.is_deepspeed:
            yield
        elif self._sharded_by_fsdp:
            module: Any = self.module
            module.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                module.set_requires_gradient_sync(True)
        else:
            with self.accelerator.no_sync(model=self.model):
                yield

    def backward(self, loss: Tensor) -> Tensor:
        """Run the backward pass of a scalar loss and return the loss without its graph."""
        # Losses are shares of the step's mean already, so that DeepSpeed must not divide them again.
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if self.is_deepspeed else {}))
        return loss.detach()

    def clip_gradients(self, max_norm: float) -> float:
        """Clip the gradients to `max_norm` (0: do not clip) and return their norm before that."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm if max_norm > 0 else float("inf"))
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def loss_scale(self) -> float:
        """Return the factor of fp16's loss scaler; 1 without one."""
        scaler: Any = self.accelerator.scaler
        return float(scaler.get_scale()) if scaler is not None else 1.0

    def sum(self, values: Tensor) -> Tensor:
        """Return the elementwise sum over all processes of a tensor, of the same shape on each."""
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def mean(self, value: Tensor) -> float:
        """Return the mean of a scalar over all processes."""
        if self.world == 1:
            return value.item()
        values = [torch.zeros_like(value) for _ in range(self.world)]
        dist.all_gather(values, value)
        return torch.stack(values).mean().item()

    def agreed(self, value: float) -> float:
        """Return the first process's value."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return float(shared)
