"""A converted checkpoint onto the disk: streamed, sharded, and there whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from medmvl.checkpoints.source import Entry, Source
from medmvl.errors import CheckpointError
from medmvl.files import write_json
from medmvl.models import MedMVLConfig, MedMVLForConditionalGeneration

#: Of a written file, at 4 bytes a value; as much is in memory at once beside the mapped source.
SHARD_BYTES = 2_000_000_000


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target`; on success rename it to `target`, else remove it.

    Args:
        target: may be a symbolic link; what it points at is written.

    Raises:
        CheckpointError: if `target` exists and is not an empty folder, or no folder can be made there.
    """
    given, target = target, target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{given} exists and is not empty. Choose another destination or remove it.")
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(
            f"No folder can be made at {given}: {error.strerror}. Choose another destination."
        ) from error
    try:
        yield temporary
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def expected_tensors(config: MedMVLConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors that a checkpoint of this config holds; tied ones stand once."""
    with torch.device("meta"):
        model = MedMVLForConditionalGeneration(config)
    state = model.state_dict()
    if config.text_config.tie_word_embeddings:
        state.pop(_head_name(model))
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _head_name(model: MedMVLForConditionalGeneration) -> str:
    head = model.get_output_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is head)


def check_complete(source: Source, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a source whose tensors are not exactly the model's.

    Raises:
        CheckpointError: listing what is missing, unknown, left over or of another shape.
    """
    entries = source.entries
    problems = {
        "missing": sorted(expected.keys() - entries.keys()),
        "unknown": source.unknown + sorted(entries[name].source for name in entries.keys() - expected.keys()),
        "of another shape": [
            f"{entry.source} {entry.shape}, expected {expected[name]}"
            for name, entry in entries.items()
            if name in expected and entry.shape != expected[name]
        ],
    }
    found = [
        f"{len(names)} {kind} ({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})"
        for kind, names in problems.items()
        if names
    ]
    if found:
        raise CheckpointError(
            f"The weights do not fit the model that the configs describe: {', '.join(found)}. A shard is missing, or a name "
            "was resolved to another part than the one the checkpoint was trained with."
        )


def write_weights(entries: Mapping[str, Entry], folder: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Write the tensors as safetensors, one shard in memory at a time; returns their bytes."""
    shards = _plan_shards(entries, shard_bytes)
    total, where = 0, {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors: dict[str, Tensor] = {name: entries[name].load().contiguous().clone() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        where.update(dict.fromkeys(names, file))
        del tensors  # before the next shard is read
    if len(shards) > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    return total


def _plan_shards(entries: Mapping[str, Entry], shard_bytes: int) -> list[list[str]]:
    """Group names so that no group exceeds `shard_bytes`, counting 4 bytes a value: an upper bound of what is stored."""
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
