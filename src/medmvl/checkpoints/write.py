"""A converted checkpoint onto the disk: complete, and there whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from medmvl.checkpoints.source import Source
from medmvl.errors import CheckpointError


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
