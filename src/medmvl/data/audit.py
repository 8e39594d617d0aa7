"""Does the test set know the training set? Patients, files and pictures that occur in more than one file of records.

Pictures are compared by their bytes and by a perceptual hash, which survives another size, another compression and
small changes of brightness. What is found is named by record ids: a patient's identifier is compared, never printed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmvl.data.formats import read_records
from medmvl.data.perceptual import NearIndex, difference_hash, grey_picture, likeness
from medmvl.errors import DataError
from medmvl.files import PathLike, existing_file, existing_folder, read_json, sha256

GROUPS = ("patient", "study", "scan")
NAMED = 5
HASH_BITS = 15  # of 256: how far the hashes of near-duplicates may be apart
ALIKE = 0.96  # correlation of fine structure from which two pictures are one; see `perceptual.likeness`


@dataclass(frozen=True)
class Place:
    """Where a record stands: the position of its file among those audited, and its id."""

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
    """What was looked at and what was found."""

    records: dict[str, int]
    media: int
    unreadable: list[str]
    findings: list[Finding]

    @property
    def leaks(self) -> list[Finding]:
        """Return the findings between two files."""
        return [finding for finding in self.findings if finding.is_leak]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the report file."""
        found = [vars(finding) | {"leak": finding.is_leak} for finding in self.findings]
        return {"records": self.records, "media": self.media, "unreadable": self.unreadable, "findings": found}


def audit(
    files: Iterable[PathLike],
    *,
    media_root: PathLike | None = None,
    pixels: bool = True,
    distance: int = HASH_BITS,
    on_record: Callable[[], None] = lambda: None,
) -> Audit:
    """Look for what the files share.

    Groups (`patient`, `study`, `scan`) are compared between files of one data set only, because two data sets may both
    have a patient "1"; pictures and texts are compared between all.

    Args:
        files: records files, each one split of one data set.
        media_root: folder of all media; otherwise that of the report.json beside a file, otherwise the file's folder.
        pixels: read the media; without it, only ids, groups and paths are compared.
        distance: bits of 256 by which the hashes of near-duplicate images may differ. Another size, compression or
            brightness is found; a cropped, turned or mirrored copy is not.
        on_record: called for every record, for a progress bar.

    Raises:
        DataError: if a file or its media root is missing, or a file is no file of records.
    """
    paths = [existing_file(path, "data file") for path in files]
    if not paths:
        raise DataError("Name at least one file of records to audit.")
    names = _short_names(paths)
    seen: dict[str, dict[Any, list[Place]]] = defaultdict(lambda: defaultdict(list))
    media: dict[Path, Place] = {}
    counts = dict.fromkeys(names, 0)
    for number, path in enumerate(paths):
        dataset, root = _origin(path, media_root)
        for record in read_records(path):
            place = Place(number, str(record.get("id")))
            counts[names[number]] += 1
            on_record()
            for group in GROUPS:
                if record.get(group):
                    _note(seen[group], (dataset, str(record[group])), place)
            _note(seen["same record"], _fingerprint(record), place)
            for file in _media(record, root):
                media.setdefault(file, place)
                _note(seen["same path"], file, place)
    findings = [f for group in (*GROUPS, "same record") for f in _shared(group, seen[group].values(), names)]
    unreadable: list[str] = []
    if pixels:
        exact, near = _compare_media(media, distance, unreadable)
        # One path in two files is the same file too; its record of each file is in `seen`.
        findings += _shared("same file", _merge(exact, media, seen["same path"]), names)
        findings += _shared("near-duplicate image", near, names)
    else:
        findings += _shared("same file", seen["same path"].values(), names)
    # Many questions about one picture or patient are how such data are; only records may not repeat within a file.
    findings = [f for f in findings if f.is_leak or f.kind in ("same record", "near-duplicate image")]
    return Audit(counts, len(media), unreadable, findings)


def _short_names(paths: list[Path]) -> list[str]:
    """Return names that tell the files apart: "slake/train.jsonl"."""
    short = ["/".join(path.parts[-2:]) for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _origin(path: Path, media_root: PathLike | None) -> tuple[str, Path]:
    """Return the data set of a records file and the root of its media, from the report.json beside it if there."""
    dataset, root = path.parent.resolve().as_posix(), path.parent
    report = path.parent / "report.json"
    if report.is_file():
        content = read_json(report)
        if isinstance(content, dict) and "dataset" in content:
            dataset = str(content["dataset"])
            root = path.parent / str(content.get("media_root", "."))
    return dataset, existing_folder(media_root if media_root is not None else root, "media root")


def _media(record: dict[str, Any], root: Path) -> Iterator[Path]:
    for key in ("image", "image3d", "volume"):
        value = record.get(key) or []
        for name in [value] if isinstance(value, str) else value:
            yield (root / name).resolve()


def _fingerprint(record: dict[str, Any]) -> bytes:
    """Return a digest of what is asked, answered and shown; ids do not count."""
    turns = record.get("conversations") or record.get("messages")
    shown = [record.get(key) for key in ("image", "image3d", "volume")]
    return hashlib.blake2b(repr((turns, record.get("answer"), shown)).encode(), digest_size=16).digest()


def _note(table: dict[Any, list[Place]], key: Any, place: Place) -> None:
    """Remember where a key occurs: the first two places of each file are enough to tell."""
    places = table[key]
    if sum(other.file == place.file for other in places) < 2:
        places.append(place)


def _shared(kind: str, groups: Iterable[list[Place]], names: list[str]) -> list[Finding]:
    """Return a finding for each pair of files (or one file twice) that occurs in a group of places."""
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
    groups: Iterable[list[Path]], media: dict[Path, Place], places: dict[Any, list[Place]]
) -> Iterator[list[Place]]:
    """Yield the places of all records that show a file of a group of equal files."""
    for group in groups:
        yield [place for path in group for place in places[path]]


def _compare_media(
    media: dict[Path, Place], distance: int, unreadable: list[str]
) -> tuple[list[list[Path]], list[list[Place]]]:
    """Return groups of files with equal bytes, and groups of places whose pictures are nearly equal."""
    by_bytes: dict[str, list[Path]] = defaultdict(list)
    index = NearIndex(distance)
    near: list[list[Place]] = []
    owners: list[Path] = []
    for path, place in media.items():
        digest = _digest(path)
        if digest is None:
            unreadable.append(place.id)
            continue
        by_bytes[digest].append(path)
        if len(by_bytes[digest]) > 1:
            continue  # equal bytes are found already
        grey = grey_picture(path)
        bits = None if grey is None else difference_hash(grey)
        if grey is None or bits is None:
            continue
        # The hash proposes, the pictures themselves decide: radiographs of one kind have similar hashes.
        for other in index.add(bits):
            earlier = grey_picture(owners[other])
            if earlier is not None and likeness(grey, earlier) >= ALIKE:
                near.append([media[owners[other]], place])
        owners.append(path)
    return list(by_bytes.values()), near


def _digest(path: Path) -> str | None:
    """Return a digest of a file, or of all files of a DICOM folder; None if it is not there."""
    if path.is_file():
        return sha256(path)
    if path.is_dir():
        parts = sorted(sha256(file) for file in path.rglob("*") if file.is_file())
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    return None
