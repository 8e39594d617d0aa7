"""What is known of a data set: from its file of records, its conversion report, and the mark of synthetic media."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from medmvl.cards.reading import reading_text
from medmvl.data.formats import count_records, read_records
from medmvl.data.read_options import ReadOptions
from medmvl.data.roots import MediaRoots
from medmvl.data.synthetic import LICENSE, read_note
from medmvl.errors import MedMVLError
from medmvl.files import sha256

#: Larger files of records are not hashed for a card.
MAX_HASHED_BYTES = 4_000_000_000
#: Larger files are counted without a look at their patients.
MAX_PARSED_BYTES = 200_000_000


@dataclass(frozen=True)
class DataFacts:
    """A data set that a stage saw.

    Attributes:
        name: its name in the recipe.
        stages: names of the stages that used it.
        digest: SHA-256 of its file as it is now; "" if the file is not there.
        records: how many of them the stages use; None if it is not known.
        patients: of those records; None if not all of them name one.
        license: from the converter's report; None without one.
        title: the same.
        synthetic: whether they are phantoms drawn by this toolkit; None if nothing says so or otherwise.
        reading: options of the data set or of its records with which their files are read, in words; "" for the defaults.
    """

    name: str
    stages: tuple[str, ...]
    digest: str = ""
    records: int | None = None
    patients: int | None = None
    license: str | None = None
    title: str | None = None
    synthetic: bool | None = None
    reading: str = ""


class _Counts(NamedTuple):
    """What the records of a file say; `records` and `patients` are None where that is not known."""

    records: int | None
    patients: int | None
    reading: Mapping[ReadOptions, int | None]


def data_set(name: str, recipe: Mapping[str, Any], stages: tuple[str, ...]) -> DataFacts:
    """Return what the file, its conversion report and the mark of synthetic media say of a data set."""
    section = recipe["data"][name]
    root = Path(recipe.get("data_root") or ".")
    file = root / section["path"]
    notes = [note for folder in _media_roots(file, root, section) if (note := read_note(folder))]
    if not file.is_file():
        facts = DataFacts(name, stages, reading=reading_text({_reading(section): None}))
        return replace(facts, license=LICENSE, title=notes[0], synthetic=True) if notes else facts
    report = json_object(file.with_name("report.json"))
    changed, tasks = file.stat().st_mtime_ns, section.get("tasks")
    known = _counts(file.resolve(), changed, None if tasks is None else tuple(tasks), _reading(section))
    records = known.records
    counts = report.get("records")
    if records is None and tasks is None and isinstance(counts, dict):
        records = counts.get(file.stem)
    return DataFacts(
        name,
        stages,
        digest_of(file.resolve(), changed) if file.stat().st_size <= MAX_HASHED_BYTES else "",
        records,
        known.patients,
        report.get("license")
        or report.get("licence")
        or (LICENSE if notes else None),  # "licence" before November 2026
        report.get("title") or (notes[0] if notes else None),
        True if notes else report.get("synthetic"),
        reading_text(known.reading),
    )


def _reading(section: Mapping[str, Any]) -> ReadOptions:
    """Return the options of a data set for reading its files; the defaults if a stored recipe holds none that are allowed."""
    try:
        return ReadOptions.parse(section.get("read"))
    except MedMVLError:
        return ReadOptions()


def _media_roots(file: Path, root: Path, section: Mapping[str, Any]) -> list[Path]:
    image, volume = (root / given if (given := section.get(f"{kind}_root")) else None for kind in ("image", "volume"))
    # A data set with one root that is set has media of that kind only; the default root is for those that set none.
    given = [folder for folder in (image, volume) if folder is not None]
    try:
        return given or [folder for folder in MediaRoots().of_file(file) if isinstance(folder, Path)][:1]
    except MedMVLError:  # a report that cannot be read
        return []


def json_object(file: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds; empty if there is none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@lru_cache(maxsize=1000)
def _counts(file: Path, changed: int, tasks: tuple[str, ...] | None, default: ReadOptions) -> _Counts:
    """Return what the records of a file say that was last changed at a time.

    Args:
        tasks: the records that count; None: all.
        default: options of the data set, which a record's own ones complete.
    """
    if file.stat().st_size > MAX_PARSED_BYTES:
        return _Counts(count_records(file) if tasks is None else None, None, {default: None})
    patients: list[object] = []
    reading: Counter[ReadOptions] = Counter()
    try:
        for record in read_records(file):
            record = record if isinstance(record, dict) else {}
            if tasks is None or record.get("task") in tasks:
                patients.append(record.get("patient"))
                reading[ReadOptions.parse(record.get("read")).over(default)] += 1
    except (MedMVLError, OSError, ImportError):
        return _Counts(None, None, {default: None})
    named = bool(patients) and all(isinstance(patient, str | int) and patient != "" for patient in patients)
    return _Counts(len(patients), len(set(patients)) if named else None, dict(reading))


@lru_cache(maxsize=1000)
def digest_of(file: Path, changed: int) -> str:
    """Return the SHA-256 of a file that was last changed at a time; each stage of a run has the same base."""
    return sha256(file)
