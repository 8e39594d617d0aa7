"""The few words about other processes that a run needs; with one process they mean nothing."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from medmvl.models import MedMVLForConditionalGeneration

#: The first process writes a finished checkpoint of any size while the others wait for it.
PATIENCE = timedelta(hours=2)


def several_processes() -> bool:
    """Say whether torchrun or accelerate started more than this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(cpu: bool) -> None:
    """Join the processes that torchrun or accelerate started together, if there are several."""
    if several_processes() and not dist.is_initialized():
        PartialState(cpu=cpu, timeout=PATIENCE)


def is_main_process() -> bool:
    """Say whether this is the first process, which writes files and speaks to the user."""
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def shard(model: MedMVLForConditionalGeneration, device: torch.device, dtype: torch.dtype | None) -> None:
    """Spread a model's weights over all processes (FSDP2), in place: each layer of the LLM, and the rest as one unit.

    It is done by hand because `Trainer` with its FSDP settings runs plain DDP on CPUs, and says nothing. The towers stay
    in the outer unit, so that a batch without images finds their weights whole and no process waits for another. Each unit
    moves to the device as it is cut, so that the model is never whole there.

    Args:
        device: of this process.
        dtype: what weights are gathered in, None for their own; gradients are reduced in fp32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    settings: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    for layer in model.language_model.get_decoder().layers:
        fully_shard(layer, **settings)
    fully_shard(model, **settings)
    register_fsdp_forward_method(model, "generate")
    # transformers then leaves placement, wrapping and gradient reduction to the model. fully_shard has just given the
    # model a class of its own, so that this says nothing about other models.
    type(model).is_distributed_loading_by_transformers = True
