"""Prepare every volume of a data file into tar shards, written by several processes or a Ray cluster.

Shard n holds the volumes n*k to (n+1)*k of the data file, whatever process writes it, so a job that was interrupted and resumed writes
the shards of an uninterrupted one, and shards of any number of workers are equal byte for byte.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medmvl.data.dataset import SampleDataset
from medmvl.data.roots import MediaRoots
from medmvl.errors import require
from medmvl.files import OutputLock, PathLike
from medmvl.imaging import Geometry
from medmvl.imaging.cache import MOST_ROWS, SHARD_BYTES, Fingerprint
from medmvl.imaging.metadata import RescaleTable
from medmvl.imaging.tar_shards import read_shard_index
from medmvl.imaging.volume_shards import begin_volume_shards, fingerprint_of, write_volume_manifest, write_volume_shard
from medmvl.process_pool import results_in_order
from medmvl.processing.cache import (
    CacheReport,
    Engine,
    Preparer,
    Source,
    is_unchanged,
    one_thread,
    row_of,
    source_of,
    volume_sources,
)
from medmvl.remote import RemotePath, as_root


@dataclass(frozen=True)
class ShardResult:
    """A written or kept shard.

    Attributes:
        index: content of its index.
        prepared: volumes prepared now.
        kept: volumes that were there already and are unchanged.
        failures: (number of the record from 0, reason without paths).
    """

    index: dict[str, Any]
    prepared: int = 0
    kept: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class ShardMaker:
    """Prepares the volumes of one shard and writes it; picklable, so that it can be sent to where the work is done."""

    prepare: Preparer
    target: PathLike

    def __call__(self, number: int, sources: list[Source]) -> ShardResult:
        """Write shard `number` unless it is there and its sources are unchanged."""
        there = read_shard_index(self.target, number)
        if there is not None and self._is_current(there, sources):
            return ShardResult(there, kept=len(sources))
        failures: list[tuple[int, str]] = []
        index = write_volume_shard(self.target, number, self._rows(sources, failures))
        return ShardResult(index, prepared=len(index["rows"]), failures=failures)

    def _is_current(self, index: dict[str, Any], sources: list[Source]) -> bool:
        rows = {row["name"]: fingerprint_of(row) for row in index["rows"]}
        return list(rows) == [source.key for source in sources] and all(
            is_unchanged(source, rows[source.key], self.prepare) for source in sources
        )

    def _rows(
        self, sources: list[Source], failures: list[tuple[int, str]]
    ) -> Iterator[tuple[str, np.ndarray, Fingerprint]]:
        for source in sources:
            outcome = self.prepare(source)
            if outcome.array is None or outcome.fingerprint is None:
                failures.append((source.record, outcome.reason))
            else:
                yield source.key, outcome.array, outcome.fingerprint


def build_shards(
    data: PathLike,
    geometry: Geometry,
    out: PathLike,
    *,
    roots: MediaRoots | None = None,
    workers: int = 1,
    engine: Engine = "processes",
    metadata: PathLike | None = None,
    shard_size: int | None = None,
    on_volume: Callable[[int], None] = lambda total: None,
) -> CacheReport:
    """Write every volume that the records of `data` name into shards in a folder or an object store.

    Args:
        data: records file or its URL.
        geometry: the model's.
        out: folder or URL; shards of an interrupted job are kept.
        roots: folder or URL of the volumes and reading options; default as for `SampleDataset`.
        workers: processes; 1 works in this one. With Ray: tasks at a time.
        engine: where the shards are written.
        metadata: CT-RATE's metadata csv, where the NIfTI files are not in Hounsfield units.
        shard_size: volumes per shard; default: about 64 MB.
        on_volume: called after each volume with the number of all volumes.

    Returns:
        the summary; failures are also in the manifest, by record number, without paths.

    Raises:
        GeometryError: if `out` holds shards of another geometry.
        DataError: if the data file cannot be read, the store refuses, or a worker dies.
        BusyError: if another process writes to the folder `out`.
    """
    target = as_root(out)
    report = CacheReport()
    dataset = SampleDataset(data, roots)
    size = shard_size or _rows_per_shard(geometry)
    maker = ShardMaker(Preparer(geometry, RescaleTable(metadata) if metadata else None), target)
    run = _with_ray if engine == "ray" else _with_processes
    indices = []
    with nullcontext() if isinstance(target, RemotePath) else OutputLock(target, folder=True):
        salt = begin_volume_shards(target, geometry)
        sources = list(volume_sources(dataset, salt, report))
        groups = [sources[start : start + size] for start in range(0, len(sources), size)]
        for result in run(maker, groups, workers):
            indices.append(result.index)
            report.prepared += result.prepared
            report.kept += result.kept
            report.failures += result.failures
            for _ in range(result.prepared + result.kept + len(result.failures)):
                on_volume(len(sources))
        report.failures.sort()
        failures = [{"record": number, "reason": why} for number, why in report.failures]
        write_volume_manifest(target, geometry, indices, {"salt": salt, "failures": failures})
    return report


def _rows_per_shard(geometry: Geometry) -> int:
    row_bytes = math.prod((geometry.channels, *geometry.size)) * np.dtype(geometry.dtype).itemsize
    return min(max(SHARD_BYTES // row_bytes, 1), MOST_ROWS)


def _with_processes(maker: ShardMaker, groups: list[list[Source]], workers: int) -> Iterator[ShardResult]:
    """Return results in the order of the groups; each process writes its own shards."""
    return results_in_order(workers, maker, enumerate(groups))


def _with_ray(maker: ShardMaker, groups: list[list[Source]], workers: int) -> Iterator[ShardResult]:
    """Yield results in the order of the groups from a Ray cluster (the one of RAY_ADDRESS, or a local one).

    Sources and `out` must be reachable by all machines: a shared folder or an object store.
    """
    require("ray", "ray")
    import ray

    if not ray.is_initialized():
        local = "RAY_ADDRESS" not in os.environ
        ray.init(num_cpus=workers if local else None, include_dashboard=False, log_to_driver=False)
    remote_target = isinstance(maker.target, RemotePath)
    prepare, target = maker.prepare, str(maker.target)

    @ray.remote  # type: ignore[untyped-decorator, unused-ignore]
    def write(number: int, rows: list[dict[str, Any]]) -> ShardResult:
        one_thread()
        place = RemotePath(target) if remote_target else target
        return ShardMaker(prepare, place)(number, [source_of(row) for row in rows])

    waiting: deque[Any] = deque()
    for number, group in enumerate(groups):
        waiting.append(write.remote(number, [row_of(source) for source in group]))
        if len(waiting) >= max(workers, 1):
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())
