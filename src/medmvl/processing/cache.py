"""Prepare every volume of a data file once: in parallel, resumable, with an account of what failed.

The same function prepares a volume in one process, in many, and in a Ray cluster. Rows come back in the order of the
data file whoever makes them, so a cache that was interrupted and resumed is the cache of an uninterrupted run.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from medmvl.data.dataset import SampleDataset
from medmvl.errors import DataError, MedMVLError, require
from medmvl.files import PathLike, resolve_under, write_jsonl
from medmvl.imaging import Geometry, read_volume
from medmvl.imaging.cache import CacheWriter, Fingerprint, key_of, reading_digest
from medmvl.imaging.metadata import RescaleTable

Engine = Literal["processes", "ray"]
FAILURES = "failures.jsonl"
#: a DICOM UID or the end of one, as messages show it
_UID = re.compile(r"(\.\.\.)?\d*(\.\d+){3,}(#\w*)?")


@dataclass(frozen=True)
class Source:
    """A volume to prepare: its key, its path, and the first record (from 0) that names it."""

    key: str
    path: str
    record: int


@dataclass(frozen=True)
class Outcome:
    """What became of a source: an array with its source's fingerprint, or the reason why not."""

    source: Source
    array: np.ndarray | None = None
    fingerprint: Fingerprint | None = None
    reason: str = ""


@dataclass
class CacheReport:
    """The account of a run.

    Attributes:
        prepared: volumes written now.
        kept: volumes that were there already and are unchanged.
        failures: (number of the record from 0, reason without paths).
    """

    prepared: int = 0
    kept: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)


def build_cache(
    data: PathLike,
    geometry: Geometry,
    out: PathLike,
    *,
    volume_root: PathLike | None = None,
    workers: int = 1,
    engine: Engine = "processes",
    metadata: PathLike | None = None,
    options: dict[str, Any] | None = None,
    shard_size: int | None = None,
    on_volume: Callable[[int], None] = lambda total: None,
) -> CacheReport:
    """Fill the cache folder `out` with every volume that the records of `data` name.

    Args:
        geometry: the model's.
        volume_root: folder of the volumes; the data file's own by default.
        workers: processes; 1 works in this one. With Ray: tasks at a time.
        metadata: CT-RATE's metadata csv, where the NIfTI files are not in Hounsfield units.
        options: further arguments of `read_volume`, for all volumes (units, series, gaps, ...).
        on_volume: called after each volume with the number of all volumes.

    Returns:
        the account; failures are also in `failures.jsonl` of the folder, by record number, without paths.

    Raises:
        GeometryError: if `out` holds a cache of another geometry.
        DataError: if the data file cannot be read, or a worker dies.
    """
    report = CacheReport()
    sources = list(_sources(data, volume_root, report))
    table = RescaleTable(metadata) if metadata else None
    prepare = Preparer(geometry, table, dict(options or {}))
    writer = CacheWriter(out, geometry, shard_size)
    todo = [source for source in sources if not _is_there(source, writer, prepare)]
    report.kept = len(sources) - len(todo)
    for _ in range(report.kept):
        on_volume(len(sources))
    run = _with_ray if engine == "ray" else _with_processes
    try:
        for outcome in run(prepare, todo, workers):
            if outcome.array is None or outcome.fingerprint is None:
                report.failures.append((outcome.source.record, outcome.reason))
            else:
                writer.add(outcome.source.key, outcome.array, outcome.fingerprint)
                report.prepared += 1
            on_volume(len(sources))
    finally:
        report.failures.sort()
        write_jsonl(Path(out) / FAILURES, ({"record": number, "reason": why} for number, why in report.failures))
        writer.close({"failed": len(report.failures)})
    return report


@dataclass(frozen=True)
class Preparer:
    """Reads and prepares one volume; picklable, so that it can be sent to where the work is done."""

    geometry: Geometry
    table: RescaleTable | None
    options: dict[str, Any]

    def __call__(self, source: Source) -> Outcome:
        """Return the outcome; a fault of the data is an outcome too, a bug of ours is raised."""
        path = Path(source.path)
        try:
            options = self.reading(path)
            fingerprint = Fingerprint.of(path, reading_digest(options))
            tensor = self.geometry(read_volume(path, **options))
        except (MedMVLError, OSError) as error:
            return Outcome(source, reason=_without_paths(str(error), path))
        return Outcome(source, tensor.numpy(), fingerprint)

    def reading(self, path: Path) -> dict[str, Any]:
        """Return the options that a volume is read with: those of its metadata, then the ones for all.

        Raises:
            ImagingError: if the metadata lack the volume.
        """
        return {**(self.table.options(path) if self.table else {}), **self.options}


def _sources(data: PathLike, volume_root: PathLike | None, report: CacheReport) -> Iterator[Source]:
    """Each volume once, in the order of the file; unreadable records and missing files go into the report."""
    dataset = SampleDataset(data, volume_root=volume_root)
    seen: set[str] = set()
    for number in range(len(dataset)):
        try:
            paths = dataset.sample(number).volumes
        except DataError as error:
            # The cause says what is wrong; the error around it also names file and id.
            reason = _without_paths(str(error.__cause__ or error), dataset.path)
            report.failures.append((number, reason.replace(dataset.path.name, "<data>")))
            continue
        for path in paths:
            key = key_of(dataset.volume_root / path, dataset.volume_root)
            if key in seen:
                continue
            seen.add(key)
            try:
                full = resolve_under(dataset.volume_root, path, "volume")
            except DataError as error:
                report.failures.append((number, _without_paths(str(error), dataset.volume_root, Path(path))))
                continue
            yield Source(key, str(full), number)


def _is_there(source: Source, writer: CacheWriter, prepare: Preparer) -> bool:
    """Say whether the cache holds this very source, read as it would be read now."""
    known, path = writer.known.get(source.key), Path(source.path)
    if known is None:
        return False
    try:
        options = prepare.reading(path)
    except MedMVLError:
        return False
    # What was readable without a rule for gaps has none, and is the same under every rule.
    without = {name: value for name, value in options.items() if name != "gaps"}
    return known.reading in (reading_digest(options), reading_digest(without)) and known.still_fits(path)


def _with_processes(prepare: Preparer, sources: Iterable[Source], workers: int) -> Iterator[Outcome]:
    """Yield outcomes in order; no more than two volumes per worker are under way or waiting."""
    if workers <= 1:
        yield from map(prepare, sources)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that has run torch can hang
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        waiting: deque[Future[Outcome]] = deque()
        try:
            for source in sources:
                waiting.append(pool.submit(prepare, source))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "A worker process died, most likely for want of memory. What is finished is kept: run the command "
                "again, with fewer workers."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _with_ray(prepare: Preparer, sources: Iterable[Source], workers: int) -> Iterator[Outcome]:
    """Yield outcomes in order from a Ray cluster (the one of RAY_ADDRESS, or a local one); paths must be shared."""
    require("ray", "ray")
    import ray.data

    by_key = {source.key: source for source in sources}
    if not by_key:
        return
    if not ray.is_initialized():
        local = "RAY_ADDRESS" not in os.environ
        ray.init(num_cpus=workers if local else None, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    ray.data.DataContext.get_current().enable_progress_bars = False

    def one(row: dict[str, Any]) -> dict[str, Any]:
        _one_thread()
        outcome = prepare(Source(row["key"], row["path"], int(row["record"])))
        if outcome.array is None or outcome.fingerprint is None:
            return {
                "key": row["key"],
                "array": b"",
                "reason": outcome.reason,
                "size": 0,
                "modified": 0,
                "sha256": "",
                "reading": "",
            }
        return {"key": row["key"], "array": outcome.array.tobytes(), "reason": "", **asdict(outcome.fingerprint)}

    shape = (prepare.geometry.channels, *prepare.geometry.size)
    rows = ray.data.from_items([asdict(source) for source in by_key.values()]).map(one)
    for row in rows.iter_rows():
        source = by_key[row["key"]]
        if row["reason"]:
            yield Outcome(source, reason=row["reason"])
            continue
        array = np.frombuffer(row["array"], dtype=prepare.geometry.dtype).reshape(shape)
        yield Outcome(source, array, Fingerprint(int(row["size"]), int(row["modified"]), row["sha256"], row["reading"]))


def _one_thread() -> None:
    torch.set_num_threads(1)


def _without_paths(message: str, *paths: Path) -> str:
    """Take paths and UIDs out of a message: folder and file names may name a patient, and a UID is one's own."""
    for path in paths:
        inside = (str(file) for file in path.rglob("*")) if path.is_dir() and str(path) in message else ()
        for name in sorted(inside, key=len, reverse=True):  # names with spaces are not found by the pattern below
            message = message.replace(name, "<source>")
        message = re.sub(re.escape(str(path)) + r"[^\s:,;'\"]*", "<source>", message)
    return _UID.sub("<uid>", message)
