"""Writing of safetensors files with one shard in memory at a time, for models larger than the memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from medmvl.files import write_json
from medmvl.models.configuration import MedMVLConfig
from medmvl.models.modeling import MedMVLForConditionalGeneration
from medmvl.progress_bar import track

#: Largest size of a written file, at 4 bytes a value. One such file is in memory, in addition to the mapped source.
SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be written and its source.

    Attributes:
        source: its name in the source, for messages.
        shape: known without reading.
        load: function that reads it.
    """

    source: str
    shape: tuple[int, ...]
    load: Callable[[], Tensor]


def expected_tensors(config: MedMVLConfig, stored: Container[str] = ()) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors that a checkpoint holds; tied ones appear once.

    Args:
        config: if it says that the head is tied and a head is stored, it is corrected: weights decide, not the config.
        stored: names of the stored tensors.
    """
    with torch.device("meta"):
        model = MedMVLForConditionalGeneration(config)
    state = model.state_dict()
    if config.text_config.tie_word_embeddings:
        head = _head_name(model)
        if head in stored:
            config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
        else:
            state.pop(head)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def head_name(config: MedMVLConfig) -> str:
    """Return the name under which a checkpoint holds the weight of the LLM's head, if it has its own."""
    with torch.device("meta"):
        return _head_name(MedMVLForConditionalGeneration(config))


def _head_name(model: MedMVLForConditionalGeneration) -> str:
    head = model.get_output_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is head)


def write_weights(entries: Mapping[str, Entry], folder: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Write the tensors as safetensors, one shard in memory at a time, and return their size in bytes."""
    shards = _plan_shards(entries, shard_bytes)
    total, where = 0, {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors: dict[str, Tensor] = {
            name: entries[name].load().contiguous().clone() for name in track(names, f"tensors of {file}")
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        where.update(dict.fromkeys(names, file))
        del tensors  # before the next shard is read
        _return_freed_memory()
    if len(shards) > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    return total


def _return_freed_memory() -> None:
    """Return freed memory to the system; glibc would keep fragments, up to half a model."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def _plan_shards(entries: Mapping[str, Entry], shard_bytes: int) -> list[list[str]]:
    """Group names so that no group exceeds `shard_bytes`, counting 4 bytes a value, an upper bound of the stored size."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, entry in sorted(entries.items()):
        needed = 4 * torch.Size(entry.shape).numel()
        if shards[-1] and size + needed > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += needed
    return shards
