"""Training in half precision on a CPU: settings that save time and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

HALF = (torch.float16, torch.bfloat16)
#: Numbers of kernels that oneDNN, and torch's layer above it, cache for shapes they have seen.
_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}


def keep_few_kernels() -> None:
    """Limit oneDNN's cache to 64 kernels, unless the environment sets it; must be called before the first kernel is made.

    Batches have different shapes, so few kernels are reused, and the default of 1024 takes gigabytes: a bf16 run of 24 steps
    with a 12 M-parameter model took 1.75 GB with 1024 kernels and 1.25 GB with 64, in the same time.
    """
    for name, count in _KERNELS.items():
        os.environ.setdefault(name, count)


@contextmanager
def whole_attention_on_cpu() -> Iterator[None]:
    """Context in which attention of half-precision inputs on the CPU runs in fp32, also under autocast.

    torch's flash attention for CPUs has a slow backward pass in half precision: 1.2 to 3 times that of fp32 (torch 2.13,
    AVX-512 with bf16; `benchmarks/training_step.py` measures whole steps). torch's function itself is replaced, because all models
    call it and because layers that are recomputed in the backward pass must use the same function.
    """
    torchs = functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dtype = _half(query)
        if dtype is None:
            return torchs(query, key, value, *args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            whole = (_whole(states) for states in (query, key, value))
            return torchs(*whole, *map(_whole, args), **{k: _whole(v) for k, v in kwargs.items()}).to(dtype)

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = torchs


def _half(query: Tensor) -> torch.dtype | None:
    """Return the half-precision dtype that attention would run in on the CPU; None if it is another one or elsewhere."""
    dtype = query.dtype
    if dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    return dtype if query.device.type == "cpu" and dtype in HALF else None


def _whole(value: Any) -> Any:
    """Return a half-precision tensor in fp32, and anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value
