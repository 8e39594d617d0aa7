"""Running a converter: atomic records files per split, and a report of what was kept, skipped and faulty."""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import medmvl.data.converters.all  # noqa: F401  (registers the converters)
from medmvl.data.converters.converter import DATASETS, NOT_STATED, ConversionReport, Converter, Job
from medmvl.data.converters.seen import SeenIds
from medmvl.data.record import parse_record
from medmvl.data.synthetic import LICENSE as SYNTHETIC_LICENSE
from medmvl.data.synthetic import read_note
from medmvl.errors import DataError
from medmvl.files import OutputLock, PathLike, atomic, existing_folder, read_json, write_json

MAX_FAULT_SHARE = 0.05

#: What reading a source raises that is in no documented layout, or damaged where a converter did not expect it.
_FOREIGN = (
    *(KeyError, IndexError, AttributeError, TypeError, ValueError, RecursionError),
    *(EOFError, IsADirectoryError, NotADirectoryError, zlib.error, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        files: split -> the records file.
        counts: split -> number of records.
        report: what was left out, what was faulty, what was assumed.
        media_root: the folder that the paths in the records are relative to.
    """

    files: dict[str, Path]
    counts: dict[str, int]
    report: ConversionReport
    media_root: Path


def convert(
    name: str,
    source: PathLike,
    out: PathLike,
    *,
    options: Mapping[str, Any] | None = None,
    strict: bool = False,
    max_fault_share: float = MAX_FAULT_SHARE,
    limit: int | None = None,
    on_record: Callable[[], None] = lambda: None,
) -> Conversion:
    """Convert the data set `name` at `source` to `out/<split>.jsonl` and `out/report.json`.

    Args:
        name: a name of `DATASETS`.
        source: the unpacked data set.
        out: a folder for the records.
        options: settings of the converter.
        strict: stop at the first fault.
        max_fault_share: the share of faulty items above which the conversion, once finished, counts as failed.
        limit: keep only the first records of every split (for a first try).
        on_record: called for every record, for a progress bar.

    Raises:
        DataError: for an unknown name or option, a source that is not in the documented layout, a fault with `strict`,
            no record at all, or too many faults (after everything has been written).
        BusyError: naming the process, if another one writes to `out`.
    """
    converter = DATASETS[name]
    if options is not None and not isinstance(options, Mapping):
        raise DataError(f"options must be a dictionary of settings, not a {type(options).__name__}.")
    settings = converter.parse_options(options or {})
    file = Path(source) if Path(source).is_file() else None
    _refuse_archive(file)
    folder = file.parent if file else existing_folder(source, f"source of {name}")
    job = Job(folder, Path(out), settings, ConversionReport(strict), file)
    with OutputLock(job.out, folder=True):
        result = _run(converter, job, limit, on_record)
        write_json(job.out / "report.json", _report(converter, job, result))
    _judge(converter, result, max_fault_share)
    return result


def _run(converter: Converter, job: Job, limit: int | None, on_record: Callable[[], None]) -> Conversion:
    """Write the records of all splits and remove those of an earlier conversion."""
    source = job.file or job.source
    try:
        counts = _write_splits(converter, job, limit, on_record)
    except _FOREIGN as error:
        # Sources come in every shape; what a converter did not foresee is still the source's fault, not a crash.
        raise DataError(
            f"{converter.name}: something in {source} is not in the documented layout, or damaged ({type(error).__name__}: {error}). "
            f"Expected: {converter.layout} (--debug shows where)."
        ) from error
    files = {split: job.out / f"{split}.jsonl" for split in counts}
    root = job.out if job.report.exported else job.source
    _remove_stale(job.out, counts)
    return Conversion(files, dict(counts), job.report, root)


def _refuse_archive(file: Path | None) -> None:
    """Raise if the source is an archive, with advice on unpacking it."""
    if (
        file is None
        or file.suffix not in (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")
        or file.name.endswith(".csv.gz")
    ):
        return
    if file.suffix == ".zip" and not zipfile.is_zipfile(file):
        raise DataError(f"{file} is not a whole zip archive (half downloaded, or a part of a split one). Get it again.")
    raise DataError(f"{file} is an archive. Unpack it and give the folder.")


def _write_splits(converter: Converter, job: Job, limit: int | None, on_record: Callable[[], None]) -> Counter[str]:
    """Write every split to a temporary file, and rename them all when the last record is written."""
    counts: Counter[str] = Counter()
    handles: dict[str, TextIO] = {}
    seen: dict[str, SeenIds] = {}
    with ExitStack() as stack:
        for split, record in converter.run(job):
            if limit is not None and counts[split] >= limit:
                continue
            try:
                parse_record(record, str(split))
            except DataError as error:
                # Only the reason: the record's id is named by the fault itself.
                job.report.fault(f"record is not valid: {error.__cause__ or error}"[:200], str(record.get("id")))
                continue
            if not seen.setdefault(split, SeenIds()).add(str(record["id"])):
                job.report.fault("id seen twice in one split", str(record["id"]))
                continue
            if split not in handles:
                _check_split(split)
                temporary = stack.enter_context(atomic(job.out / f"{split}.jsonl"))
                handles[split] = stack.enter_context(temporary.open("w", encoding="utf-8"))
            handles[split].write(json.dumps(record, ensure_ascii=False) + "\n")
            counts[split] += 1
            on_record()
    return counts


def _check_split(split: str) -> None:
    """Raise if a split name is not a plain file name; a user's table may hold any text."""
    if not re.fullmatch(r"[\w-]+", split):
        raise DataError(f"The split {split!r} cannot be a file name. Use letters, digits, '_' and '-'.")


def _remove_stale(out: Path, current: Iterable[str]) -> None:
    """Remove the splits of an earlier conversion into the same folder that this one did not write."""
    report = out / "report.json"
    if report.is_file():
        earlier = read_json(report)
        for split in set(earlier.get("records", {}) if isinstance(earlier, dict) else {}) - set(current):
            (out / f"{split}.jsonl").unlink(missing_ok=True)


def _report(converter: Converter, job: Job, result: Conversion) -> dict[str, Any]:
    note, given = read_note(job.source), getattr(job.options, "license", None)
    options = job.options
    if job.report.read_as is not None:
        converter, options = DATASETS[job.report.read_as[0]], job.report.read_as[1]
    title, license_ = job.report.title or converter.title, given or converter.license
    if note is not None:
        title = note if converter.license == NOT_STATED else f"Synthetic phantoms in the layout of {converter.title}"
        license_ = given or SYNTHETIC_LICENSE
    return {
        "dataset": converter.name,
        "title": title,
        "license": license_,
        "licence": license_,  # the key of reports before November 2026, which scripts of users read
        "synthetic": job.synthetic,
        "homepage": converter.homepage,
        "media_root": os.path.relpath(result.media_root, job.out),
        "options": options.model_dump(mode="json"),
        "records": result.counts,
        **job.report.to_dict(),
    }


def too_many_faults(report: Mapping[str, Any], max_fault_share: float = MAX_FAULT_SHARE) -> bool:
    """Return whether a report.json counts more faulty items than allowed, or no record, so that its conversion failed."""
    kept = sum(report["records"].values())
    faulty = sum(found["count"] for found in report["faults"].values())
    return not kept or faulty > max_fault_share * (kept + faulty)


def _judge(converter: Converter, result: Conversion, max_fault_share: float) -> None:
    report = result.report
    kept, faulty = sum(result.counts.values()), sum(report.faults.values())
    faults = " ".join(
        f"{report.describe_fault(reason)}.{' ' + report.hints[reason] if reason in report.hints else ''}"
        for reason, _ in report.faults.most_common()
    )
    if not kept:
        layout = "" if report.hints else f" Expected layout: {converter.layout}"
        raise DataError(f"No record came out of {converter.name}. {faults or 'The source holds no item.'}{layout}")
    if faulty > max_fault_share * (kept + faulty):
        raise DataError(
            f"{faulty} of {kept + faulty} items of {converter.name} are faulty, more than the share of {max_fault_share:g} that is "
            f"allowed. {faults} The records of the others are written; see report.json. "
            "Repair the source or allow more with --max-faults."
        )
