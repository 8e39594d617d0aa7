"""Training in half precision on a CPU: what torch needs there to be fast and to stay small."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

HALF = (torch.float16, torch.bfloat16)
#: Kernels that oneDNN, and torch's own layer above it, keep for shapes they have seen.
_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}


def keep_few_kernels() -> None:
    """Let oneDNN keep 64 kernels, unless the environment says how many; to be called before the first one is made.

    Every batch has shapes of its own, so that few kernels are ever used again, and the usual 1024 grow to gigabytes: a
    bf16 run of 24 steps on a 12 M-parameter model took 1.75 GB with them and 1.25 GB with 64, no slower.
    """
    for name, count in _KERNELS.items():
        os.environ.setdefault(name, count)


@contextmanager
def whole_attention_on_cpu() -> Iterator[None]:
    """For a while let attention of half-precision inputs on the CPU run in fp32, also under autocast.

    torch's flash attention for CPUs has a slow backward pass in half precision: 1.2 to 3 times that of fp32 (torch 2.13,
    AVX-512 with bf16; `benchmarks/training_step.py` shows what it means for a step). Results are more exact.
    Torch's function itself is exchanged: it is the one door through which every model attends, and a layer that is
    computed again in the backward pass must find the same behind it.
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
