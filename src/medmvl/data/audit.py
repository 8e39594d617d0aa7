"""Search for patients, files and pictures that occur in more than one file of records.

Pictures are compared by their bytes and by a perceptual hash, which survives another size, another compression and
small changes of brightness. Findings name record ids. A patient's identifier is compared, not printed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from medmvl.data.formats import iter_located, local_records
from medmvl.data.perceptual import SIDE, NearIndex, difference_hash, gray_picture, likeness
from medmvl.data.record import IMAGE_KEYS, VOLUME_KEYS, media_paths
from medmvl.data.roots import Root, conversion_report, media_root_of
from medmvl.errors import DataError
from medmvl.files import PathLike, existing_folder, sha256
from medmvl.progress_bar import track
from medmvl.remote import RemotePath, as_root, join, local_copy, parent

GROUPS = ("patient", "study", "scan")
NAMED = 5
HASH_BITS = 15  # of 256: how far the hashes of near-duplicates may be apart
ALIKE = 0.96  # correlation of fine structure from which two pictures count as the same; see `perceptual.likeness`


@dataclass(frozen=True)
class Place:
    """A record's place: the position of its file among those audited, and its id."""

    file: int
    id: str


@dataclass
class Finding:
    """Something that two files (or one file twice) share.

    Attributes:
        kind: "patient", "study", "scan", "same file", "near-duplicate image", "same record".
        files: the two files, equal when the repetition is within one.
        count: how many distinct patients, pictures ... are shared.
        examples: pairs of record ids.
    """

    kind: str
    files: tuple[str, str]
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_leak(self) -> bool:
        """Whether two different files are involved."""
        return self.files[0] != self.files[1]

    def describe(self) -> str:
        """Return one line for the command line."""
        pairs = "; ".join(f"{a} = {b}" for a, b in self.examples)
        where = " and ".join(self.files) if self.is_leak else f"{self.files[0]} itself"
        return f"{self.count} × {self.kind} shared by {where} (e.g. {pairs})"


@dataclass
class Audit:
    """The result of an audit.

    Attributes:
        records: file -> number of its records.
        media: number of different images and volumes.
        unreadable: ids of records whose file is missing or cannot be read.
        findings: what files share.
        faults: places of lines that are no records.
    """

    records: dict[str, int]
    media: int
    unreadable: list[str]
    findings: list[Finding]
    faults: list[str] = field(default_factory=list)

    @property
    def leaks(self) -> list[Finding]:
        """Return the findings between two files."""
        return [finding for finding in self.findings if finding.is_leak]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the report file."""
        found = [vars(finding) | {"leak": finding.is_leak} for finding in self.findings]
        counts = {"records": self.records, "media": self.media}
        return {**counts, "unreadable": self.unreadable, "faults": self.faults, "findings": found}


def audit(
    files: Iterable[PathLike],
    *,
    media_root: PathLike | None = None,
    pixels: bool = True,
    distance: int = HASH_BITS,
    on_record: Callable[[], None] = lambda: None,
) -> Audit:
    """Return the patients, files, pictures and records that the files share.

    Groups (`patient`, `study`, `scan`) are compared between files of one data set only, because two data sets may both
    have a patient "1"; pictures and texts are compared between all.

    Args:
        files: records files or their URLs, each one split of one data set.
        media_root: folder or URL of all media; otherwise that of the report.json next to a file, otherwise the file's folder.
        pixels: read the media; without it, only ids, groups and paths are compared.
        distance: bits of 256 by which the hashes of near-duplicate images may differ. Another size, compression or
            brightness is found; a cropped, rotated or mirrored copy is not.
        on_record: called for every record, for a progress bar.

    Raises:
        DataError: if a file or its media root is missing, a file is no file of records, or `distance` is not possible.
    """
    if not 0 <= distance < SIDE * SIDE:
        raise DataError(f"The distance is a number of bits from 0 to {SIDE * SIDE - 1}, not {distance}.")
    paths = [_existing(path) for path in files]
    if not paths:
        raise DataError("Name at least one file of records to audit.")
    names = _short_names(paths)
    table = _collect(paths, names, media_root, on_record)
    media, seen = table.media, table.seen
    findings = [f for group in (*GROUPS, "same record") for f in _shared(group, seen[group].values(), names)]
    unreadable: list[str] = []
    if pixels:
        exact, near = _compare_media(media, distance, unreadable)
        # One path in two files is the same file as well; its record of each file is in `seen`.
        findings += _shared("same file", _merge(exact, media, seen["same path"]), names)
        findings += _shared("near-duplicate image", near, names)
    else:
        findings += _shared("same file", seen["same path"].values(), names)
    # Many questions about one picture or patient are usual in such data; only records may not repeat within a file.
    findings = [f for f in findings if f.is_leak or f.kind in ("same record", "near-duplicate image")]
    return Audit(table.counts, len(media), unreadable, findings, table.faults)


@dataclass
class _Table:
    """Keys that records may share: kind -> key -> places, and the first place of each image or volume."""

    counts: dict[str, int]
    seen: dict[str, dict[Any, list[Place]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    media: dict[Root, Place] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def _existing(path: PathLike) -> Root:
    """Return a records file or its URL, whose local copy is fetched now."""
    local_records(path)
    return as_root(path, "data file")


def _collect(paths: list[Root], names: list[str], media_root: PathLike | None, on_record: Callable[[], None]) -> _Table:
    table = _Table(dict.fromkeys(names, 0))
    for number, path in enumerate(paths):
        dataset, root = _origin(path, media_root)
        for located in iter_located(path):
            on_record()
            record = located.record
            if not isinstance(record, dict):
                table.faults.append(located.where)
                continue
            table.counts[names[number]] += 1
            place = Place(number, str(record.get("id")))
            for group in GROUPS:
                if record.get(group):
                    _note(table.seen[group], (dataset, str(record[group])), place)
            _note(table.seen["same record"], _fingerprint(record), place)
            for file in _media(record, root):
                table.media.setdefault(file, place)
                _note(table.seen["same path"], file, place)
    return table


def _short_names(paths: list[Root]) -> list[str]:
    """Return a short unique name of each file, such as "slake/train.jsonl"."""
    short = ["/".join(PurePosixPath(path).parts[-2:]) for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _origin(path: Root, media_root: PathLike | None) -> tuple[str, Root]:
    """Return the data set of a records file and the root of its media."""
    if media_root is None:
        return dataset_name(path), media_root_of(path)
    root = as_root(media_root, "media root")
    return dataset_name(path), root if isinstance(root, RemotePath) else existing_folder(root, "media root")


def dataset_name(path: Root) -> str:
    """Return the data set that a records file was converted from, else its folder."""
    folder = parent(path) if isinstance(path, RemotePath) else path.parent.resolve().as_posix()
    return str(conversion_report(path).get("dataset", folder))


def _media(record: dict[str, Any], root: Root) -> Iterator[Root]:
    """Yield the files that a record names; values that are no usable path are left to `data check`."""
    for keys in (IMAGE_KEYS, VOLUME_KEYS):
        with suppress(DataError, OSError, ValueError, RuntimeError):
            names = media_paths(record, keys)
            yield from [join(root, name) if isinstance(root, RemotePath) else (root / name).resolve() for name in names]


def _fingerprint(record: dict[str, Any]) -> bytes:
    """Return a digest of the turns, answer and file names of a record; the id does not count."""
    turns = record.get("conversations") or record.get("messages")
    shown = [record.get(key) for key in ("image", "image3d", "volume")]
    return hashlib.blake2b(repr((turns, record.get("answer"), shown)).encode(errors="replace"), digest_size=16).digest()


def _note(table: dict[Any, list[Place]], key: Any, place: Place) -> None:
    """Note a place of a key; the first two places of each file suffice."""
    places = table[key]
    if sum(other.file == place.file for other in places) < 2:
        places.append(place)


def _shared(kind: str, groups: Iterable[list[Place]], names: list[str]) -> list[Finding]:
    """Return a finding for each pair of files (or one file twice) that shares a group of places."""
    findings: dict[tuple[str, str], Finding] = {}
    for places in groups:
        pairs: dict[tuple[str, str], tuple[str, str]] = {}
        for i, first in enumerate(places):
            for second in places[i + 1 :]:
                if first.file == second.file and first.id == second.id:
                    continue
                pairs.setdefault((names[first.file], names[second.file]), (first.id, second.id))
        for files, example in pairs.items():
            finding = findings.setdefault(files, Finding(kind, files))
            finding.count += 1
            if len(finding.examples) < NAMED:
                finding.examples.append(example)
    return list(findings.values())


def _merge(
    groups: Iterable[list[Root]], media: dict[Root, Place], places: dict[Any, list[Place]]
) -> Iterator[list[Place]]:
    """Yield the places of all records that show a file of a group of equal files."""
    for group in groups:
        yield [place for path in group for place in places[path]]


def _compare_media(
    media: dict[Root, Place], distance: int, unreadable: list[str]
) -> tuple[list[list[Root]], list[list[Place]]]:
    """Return groups of files with equal bytes, and groups of places whose pictures are nearly equal."""
    by_bytes: dict[str, list[Root]] = defaultdict(list)
    index = NearIndex(distance)
    near: list[list[Place]] = []
    owners: list[Root] = []
    for source, place in track(media.items(), "images and volumes"):
        path = _local(source)
        digest = None if path is None else _digest(path)
        if path is None or digest is None:
            unreadable.append(place.id)
            continue
        by_bytes[digest].append(source)
        if len(by_bytes[digest]) > 1:
            continue  # equal bytes are found already
        gray = gray_picture(path)
        bits = None if gray is None else difference_hash(gray)
        if gray is None or bits is None:
            continue
        # The hash proposes, the pictures themselves decide: radiographs of one kind have similar hashes.
        for other in index.add(bits):
            copy = _local(owners[other])
            earlier = None if copy is None else gray_picture(copy)
            if earlier is not None and likeness(gray, earlier) >= ALIKE:
                near.append([media[owners[other]], place])
        owners.append(source)
    return list(by_bytes.values()), near


def _local(source: Root) -> Path | None:
    """Return a file, or the local copy of one in an object store; None if it cannot be fetched."""
    try:
        return local_copy(source) if isinstance(source, RemotePath) else source
    except DataError:
        return None


def _digest(path: Path) -> str | None:
    """Return a digest of a file, or of all files of a DICOM folder; None if it is missing or cannot be read."""
    try:
        if path.is_file():
            return sha256(path)
        if path.is_dir():
            parts = sorted(sha256(file) for file in path.rglob("*") if file.is_file())
            return hashlib.sha256("".join(parts).encode()).hexdigest()
    except OSError:
        return None
    return None
