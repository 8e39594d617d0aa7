"""Sealed checkpoint folders, which are complete or absent.

A checkpoint is written into a temporary folder next to its destination. Its files are flushed to disk, their SHA-256 digests
are written last, and the folder is renamed. A folder without digests, or with a file that does not match its digest, counts as
damaged.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medmvl.errors import CheckpointError
from medmvl.files import BAD_JSON, atomic_directory, sha256, sync_folder, sync_tree, write_json

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
#: Files without a digest: the digests themselves, and the model card, which people edit.
_UNSEALED = {CHECKSUMS, "README.md"}
_NAME = re.compile(r"checkpoint-(\d+)")


@contextmanager
def sealed_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success seal it with checksums and rename it to `target`, replacing an older one."""
    with atomic_directory(target, replace=True) as folder:
        yield folder
        seal(folder)


def seal(folder: Path) -> None:
    """Flush every file of `folder` to disk and write their digests."""
    digests = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _UNSEALED):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        digests[file.relative_to(folder).as_posix()] = sha256(file)
    write_json(folder / CHECKSUMS, digests)
    sync_folder(folder)


def verify(folder: Path) -> None:
    """Check every file of a sealed folder against its digest.

    Raises:
        CheckpointError: naming the first file that is missing or changed.
    """
    seal_file = folder / CHECKSUMS
    if not seal_file.is_file():
        raise CheckpointError(f"The checkpoint {folder} is incomplete: it has no {CHECKSUMS}.")
    try:
        digests = dict(json.loads(seal_file.read_text(encoding="utf-8")))
    except (TypeError, *BAD_JSON) as error:
        raise CheckpointError(f"The checkpoint {folder} is damaged: {CHECKSUMS} cannot be read.") from error
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"The checkpoint {folder} is incomplete: {name} is missing.")
        if sha256(file) != digest:
            raise CheckpointError(f"The checkpoint {folder} is damaged: {name} has changed since it was written.")


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first, damaged ones included."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found)]


def newest_whole(folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint; warn about each newer one that is damaged."""
    for path in reversed(checkpoints(folder)):
        try:
            verify(path)
        except CheckpointError as error:
            logger.warning("%s Falling back to the checkpoint before it.", error)
            continue
        return path
    return None


def rotate(folder: Path, keep: int, best: Path | None = None) -> None:
    """Remove all but the `keep` newest checkpoints and the best one."""
    for path in checkpoints(folder)[:-keep]:
        if best is None or path.name != best.name:
            # Renamed first, so that no reader finds a half-removed checkpoint.
            doomed = path.rename(path.with_name(f".{path.name}.old"))
            shutil.rmtree(doomed, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove temporary folders of interrupted writes or removals."""
    if folder.is_dir():
        for path in folder.glob(".*"):
            if path.suffix in (".writing", ".partial", ".old", ".ranks"):
                shutil.rmtree(path, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Copy a finished folder with hard links where the file system supports them."""
    aside = target.with_name(f".{target.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)

    def link(file: str, place: str) -> None:
        try:
            os.link(file, place)
        except OSError:
            shutil.copy2(file, place)

    shutil.copytree(
        source, aside, copy_function=link, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", ".*")
    )
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success seal its files and move them into `folder`, the seal last.

    For a folder that also holds other files (a stage's checkpoints). Until the seal is there, `folder` counts as unfinished.
    """
    aside = folder / ".finished.writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        seal(aside)
        sync_tree(aside)
        folder.chmod(aside.stat().st_mode)
        (folder / CHECKSUMS).unlink(missing_ok=True)
        for stale in folder.glob(
            "model*.safetensors*"
        ):  # of an attempt that was cut off; an index would win over one file
            stale.unlink()
        for file in sorted(aside.iterdir(), key=lambda path: path.name == CHECKSUMS):
            if file.is_dir():
                shutil.rmtree(folder / file.name, ignore_errors=True)
            file.replace(folder / file.name)
        sync_folder(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
