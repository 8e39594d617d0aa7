"""Other processes of a run; with one process these functions do nothing."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from medmvl.models import MedMVLForConditionalGeneration
from medmvl.training.acceleration.compiled import repeated_layers

#: Timeout of collective operations: the first process writes a large finished checkpoint while the others wait.
PATIENCE = timedelta(hours=2)


def several_processes() -> bool:
    """Whether torchrun or accelerate started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(cpu: bool) -> None:
    """Join the processes that torchrun or accelerate started together, if there are several."""
    if several_processes() and not dist.is_initialized():
        PartialState(cpu=cpu, timeout=PATIENCE)


def is_main_process() -> bool:
    """Whether this is the first process, which writes files and prints messages."""
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def shard(model: MedMVLForConditionalGeneration, device: torch.device, dtype: torch.dtype | None) -> None:
    """Shard a model's weights over all processes (FSDP2), in place: each layer of the LLM, and the rest as one unit.

    torch is called directly because accelerate runs plain DDP on CPUs with FSDP settings. The towers stay in the outer unit,
    so that their weights are gathered in every step, with or without images, and no process waits for another. Each unit
    moves to the device as it is sharded, so that the device never holds the whole model.

    Args:
        device: of this process.
        dtype: of gathered weights, None for their own; gradients are reduced in fp32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    settings: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    for layer in repeated_layers(model.language_model):
        fully_shard(layer, **settings)
    fully_shard(model, **settings)
    register_fsdp_forward_method(model, "generate")


def gather_rows(rows: Tensor) -> tuple[Tensor, slice]:
    """Return the rows of all processes in the order of their ranks, and the slice of this process's own rows.

    Processes may have different numbers of rows. No gradient flows; with one process the rows are returned as they are.

    Args:
        rows: (n, ...), detached.

    Returns:
        (N, ...) with N the sum of n over the processes, and the slice of the own n rows in it.
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
