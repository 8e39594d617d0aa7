"""Prepare every volume of a data file once: in parallel, resumable, with a report of failures.

The same function prepares a volume in one process, in many, and in a Ray cluster. Rows are written in the order of the
data file in all cases, so a cache that was interrupted and resumed is the cache of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from medmvl.data.dataset import SampleDataset, resolve_below
from medmvl.data.read_options import DEFAULT_READING, ReadOptions
from medmvl.data.roots import MediaRoots, Root
from medmvl.errors import DataError, MedMVLError, require
from medmvl.files import PathLike, write_jsonl
from medmvl.imaging import Geometry, read_volume
from medmvl.imaging.cache import CacheWriter, Fingerprint, accepted_digests, key_of, reading_digest
from medmvl.imaging.metadata import RescaleTable
from medmvl.process_pool import results_in_order
from medmvl.remote import RemotePath, local_copy, unchecked_join

Engine = Literal["processes", "ray"]
FAILURES = "failures.jsonl"
#: a DICOM UID or the end of one, as messages show it
_UID = re.compile(r"(\.\.\.)?\d*(\.\d+){3,}(#\w*)?")


@dataclass(frozen=True)
class Source:
    """A volume to prepare: key, path, the first record (from 0) that names it, and its reading options."""

    key: str
    path: str
    record: int
    reading: ReadOptions = DEFAULT_READING


@dataclass(frozen=True)
class Outcome:
    """Outcome for one source: its array and fingerprint, or the reason why it could not be prepared."""

    source: Source
    array: np.ndarray | None = None
    fingerprint: Fingerprint | None = None
    reason: str = ""


@dataclass
class CacheReport:
    """Summary of a run.

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
    roots: MediaRoots | None = None,
    workers: int = 1,
    engine: Engine = "processes",
    metadata: PathLike | None = None,
    shard_size: int | None = None,
    on_volume: Callable[[int], None] = lambda total: None,
) -> CacheReport:
    """Fill the cache folder `out` with every volume that the records of `data` name.

    Args:
        geometry: the model's.
        roots: folder of the volumes and reading options; default as for `SampleDataset`.
        workers: processes; 1 works in this one. With Ray: tasks at a time.
        metadata: CT-RATE's metadata csv, where the NIfTI files are not in Hounsfield units.
        on_volume: called after each volume with the number of all volumes.

    Returns:
        the summary; failures are also in `failures.jsonl` of the folder, by record number, without paths.

    Raises:
        GeometryError: if `out` holds a cache of another geometry.
        DataError: if the data file cannot be read, or a worker dies.
    """
    report = CacheReport()
    dataset = SampleDataset(data, roots)
    table = RescaleTable(metadata) if metadata else None
    prepare = Preparer(geometry, table)
    writer = CacheWriter(out, geometry, shard_size)
    sources = list(volume_sources(dataset, writer.salt, report))
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

    def __call__(self, source: Source) -> Outcome:
        """Return the outcome; a fault of the data is an outcome too, a bug of ours is raised."""
        path = Path(source.path)
        try:
            if isinstance(source.path, RemotePath):
                path = local_copy(source.path)
            options = self.reading(source)
            fingerprint = Fingerprint.of(path, reading_digest(options))
            tensor = self.geometry(read_volume(path, **options))
        except (MedMVLError, OSError) as error:
            return Outcome(source, reason=_without_paths(str(error), path, source.path))
        return Outcome(source, tensor.numpy(), fingerprint)

    def reading(self, source: Source) -> dict[str, Any]:
        """Return the options that a volume is read with: those of its metadata, then those of its record.

        Raises:
            ImagingError: if the metadata lack the volume.
        """
        return {**(self.table.options(Path(source.path)) if self.table else {}), **source.reading.for_volume()}


def volume_sources(dataset: SampleDataset, salt: str, report: CacheReport) -> Iterator[Source]:
    """Each volume once, in the order of the file; unreadable records and missing files go into the report."""
    seen: dict[str, ReadOptions] = {}
    for number in range(len(dataset)):
        try:
            sample = dataset.sample(number)
        except DataError as error:
            # The cause says what is wrong; the error around it also names file and id.
            reason = _without_paths(str(error.__cause__ or error), dataset.path)
            report.failures.append((number, reason.replace(dataset.path.name, "<data>")))
            continue
        for path in sample.volumes:
            key = _key(dataset.volume_root, path, salt)
            if key in seen:
                if seen[key] != sample.reading:
                    report.failures.append((number, "an earlier record reads the same volume with other options."))
                continue
            seen[key] = sample.reading
            try:
                full = resolve_below(dataset.volume_root, path, "volume")
            except DataError as error:
                report.failures.append((number, _without_paths(str(error), dataset.volume_root, Path(path))))
                continue
            yield Source(key, full, number, sample.reading)


def _key(root: Root, path: str, salt: str) -> str:
    """Return the key of a record's volume; of a path that leaves a URL, which `resolve_below` refuses, a key of its own."""
    if isinstance(root, RemotePath):
        return key_of(unchecked_join(root, path), root, salt)
    return key_of(root / path, root, salt)


def _is_there(source: Source, writer: CacheWriter, prepare: Preparer) -> bool:
    """Whether the cache holds this source, unchanged and read with the same options."""
    known = writer.known.get(source.key)
    return known is not None and is_unchanged(source, known, prepare)


def is_unchanged(source: Source, known: Fingerprint, prepare: Preparer) -> bool:
    """Whether a source is as it was when it was prepared, and is read with the same options."""
    try:
        options = prepare.reading(source)
        path = local_copy(source.path) if isinstance(source.path, RemotePath) else Path(source.path)
    except MedMVLError:
        return False
    return known.reading in accepted_digests(options) and known.still_fits(path)


def _with_processes(prepare: Preparer, sources: Iterable[Source], workers: int) -> Iterator[Outcome]:
    return results_in_order(workers, prepare, ((source,) for source in sources))


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
        one_thread()
        outcome = prepare(source_of(row))
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
    rows = ray.data.from_items([row_of(source) for source in by_key.values()]).map(one)
    for row in rows.iter_rows():
        source = by_key[row["key"]]
        if row["reason"]:
            yield Outcome(source, reason=row["reason"])
            continue
        array = np.frombuffer(row["array"], dtype=prepare.geometry.dtype).reshape(shape)
        yield Outcome(source, array, Fingerprint(int(row["size"]), int(row["modified"]), row["sha256"], row["reading"]))


def row_of(source: Source) -> dict[str, Any]:
    """Return a source as a row of plain values for Ray."""
    reading = json.dumps(source.reading.given())
    remote = isinstance(source.path, RemotePath)
    return {"key": source.key, "path": str(source.path), "record": source.record, "reading": reading, "remote": remote}


def source_of(row: Mapping[str, Any]) -> Source:
    """Return the source of a row made by `row_of`."""
    path = RemotePath(row["path"]) if row["remote"] else row["path"]
    return Source(row["key"], path, int(row["record"]), ReadOptions.parse(json.loads(row["reading"])))


def one_thread() -> None:
    """Compute with one thread in this process; parallel work is by processes."""
    torch.set_num_threads(1)


def _without_paths(message: str, *paths: PathLike) -> str:
    """Take paths and UIDs out of a message: folder and file names may name a patient, and a UID is one's own."""
    for path in paths:
        folder = Path(path) if str(path) in message and not isinstance(path, RemotePath) else None
        inside = (str(file) for file in folder.rglob("*")) if folder is not None and folder.is_dir() else ()
        for name in sorted(inside, key=len, reverse=True):  # names with spaces are not found by the pattern below
            message = message.replace(name, "<source>")
        message = re.sub(re.escape(str(path)) + r"[^\s:,;'\"]*", "<source>", message)
    return _UID.sub("<uid>", message)
