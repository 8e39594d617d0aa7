"""The few words about other processes that a run needs; with one process they mean nothing."""

from __future__ import annotations

import os

import torch.distributed as dist
from accelerate import PartialState


def join(cpu: bool) -> None:
    """Join the processes that torchrun or accelerate started together, if there are several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        PartialState(cpu=cpu)


def is_main_process() -> bool:
    """Say whether this is the first process, which writes files and speaks to the user."""
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()
