"""A user's own data: a table, a saved Hugging Face data set or a chat file, next to the images or volumes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from medmvl.data.converters.chat_files import CHAT_SUFFIXES, iter_chat
from medmvl.data.converters.converter import DATASETS, NOT_STATED, Converter, Job, Options, Record, Rows, yes_or_no
from medmvl.data.converters.media import path_exists
from medmvl.data.converters.own_columns import media_columns
from medmvl.data.converters.own_identity import Identity, IdentityFinder, Masker, cell_text
from medmvl.data.converters.own_media import MediaColumn, MediaWriter, entries_of, own_title
from medmvl.data.converters.own_unnamed import note_unnamed
from medmvl.data.converters.splits import divide
from medmvl.data.pseudonyms import Pseudonyms
from medmvl.data.read_options import NAMES as READ_OPTIONS
from medmvl.data.read_options import ReadOptions
from medmvl.data.sample import IMAGE_PLACEHOLDER, VOLUME_ALIAS, VOLUME_PLACEHOLDER
from medmvl.errors import DataError, did_you_mean
from medmvl.progress_bar import track

#: Parquet shards of the hub's data sets: SPLIT-00000-of-00004.parquet, also with a hash.
_HUB_SHARD = re.compile(r"(?P<split>[A-Za-z0-9_]+)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.parquet")
_TABLES = ("*.csv", "*.csv.gz", "*.tsv", "*.xlsx", "*.parquet")


class FolderOptions(Options):
    """Settings of the converter for own data: the columns and their meaning."""

    table: str | None = Field(None, description="the table's file name, if the source holds several")
    image: str | None = Field(
        None, description="column of images: paths relative to the table (several with ;) or pictures"
    )
    volume: str | None = Field(None, description="column of volume paths (files or DICOM folders)")
    question: str | None = Field(None, description="column of questions")
    prompt: str | None = Field(None, description="one question for all rows instead, e.g. for reports")
    answer: str = Field("answer", description="column of answers or reports")
    id: str | None = Field(None, description="column of ids; the row number otherwise")
    patient: str | None = Field(None, description="column that names the patient, for splits and intervals")
    split: str | None = Field(None, description="column of split names; otherwise by the shares")
    test_share: float = Field(0.0, ge=0, le=1, description="share of the patients (or rows) that become 'test'")
    val_share: float = Field(0.0, ge=0, le=1, description="share of the patients (or rows) that become 'validation'")
    task: str = Field("vqa", description="what the records are: vqa, report, classify, ...")
    keep: str = Field("", description="comma-separated further columns to keep in the records")
    identifiers: str = Field(
        "auto",
        description="comma-separated columns that identify patients, besides `patient`: their values are removed from texts, "
        "ids and paths; auto: by the columns' names; none: no column",
    )
    paths: Literal["auto", "keep", "neutral"] = Field(
        "auto",
        description="paths in the records; neutral: of links below `out/media` with neutral names; keep: as in the table; auto: "
        "neutral if paths hold identifiers of patients or words that may be names",
    )
    text_only: bool = Field(False, description="make records without images although the table names some")
    unnamed: str | None = Field(None, description="file for the paths of all images and series that no row names")
    license: str | None = Field(
        None, description="license of the data, for the report and model cards; default: not stated"
    )
    encoding: str | None = Field(
        None, description="encoding of a csv table, such as cp850 or mac_roman; UTF-8, UTF-16 and cp1252 are detected"
    )
    key_file: str | None = Field(None, description="key of the pseudonyms; default: one in the user's data folder")
    units: Literal["HU", "arbitrary"] | None = Field(None, description="units of all volumes, where files do not say")
    series: str | None = Field(None, description="DICOM series to read: a UID, largest, thinnest, axial, ...")
    gaps: Literal["refuse", "fill", "keep"] | None = Field(None, description="what to do about missing DICOM slices")
    spacing: str | None = Field(None, description="spacing z,y,x in mm, where files have none")
    orientation: str | None = Field(None, description="sides of the axes of array or NIfTI files, such as SPL")
    slope: float | None = Field(None, description="rescale slope to HU that NIfTI files lack")
    intercept: float | None = Field(None, description="rescale intercept to HU that NIfTI files lack")
    already_rescaled: bool | None = Field(None, description="whether values that look rescaled to HU already are")
    frame: int | None = Field(None, ge=0, description="frame of multi-frame images, from 0")

    @model_validator(mode="after")
    def _check(self) -> FolderOptions:
        if self.test_share + self.val_share > 1:
            given = f"{self.test_share:g} and {self.val_share:g}"
            raise ValueError(f"--test-share and --val-share together must be at most 1, not {given}")
        if self.text_only and (self.image or self.volume):
            raise ValueError(
                "--text-only makes records without images. Leave it out, or leave --image and --volume out"
            )
        return self

    def reading(self) -> ReadOptions:
        """Return the options that all records are read with."""
        return ReadOptions.parse({name: getattr(self, name) for name in READ_OPTIONS}, "The options")

    def kept(self) -> list[str]:
        """Return the names of the further columns to keep."""
        return [name.strip() for name in self.keep.split(",") if name.strip()]


@dataclass(frozen=True)
class _Row:
    """A row of the source: its cells, its name in messages, and its split if the source gives one."""

    cells: dict[str, Any]
    name: str
    split: str


def run(job: Job) -> Rows:
    """Yield a record per row."""
    options: FolderOptions = job.options
    table = _table(job)
    if options.encoding and (table.is_dir() or table.suffix in CHAT_SUFFIXES):
        raise DataError("--encoding has a meaning for csv tables only. Leave it out.")
    if table.suffix in CHAT_SUFFIXES:
        yield from iter_chat(job, table, Masker(lambda: _pseudonyms(job, options.key_file)))
        return
    _check_columns(job, options)
    rows = list(_rows(job, table, options))
    root = table if table.is_dir() else table.parent
    _check_media_columns(job, options, rows, root)
    finder = IdentityFinder(job, dict.fromkeys(column for row in rows for column in row.cells), root)
    identities = [finder.of(row.cells, _named_files(row, options)) for row in track(rows, "identities")]
    splits = _splits(job, rows, [identity.patient for identity in identities])
    masker = Masker(lambda: _pseudonyms(job, options.key_file))
    cells = [(_media_cells(row, options), identity) for row, identity in zip(rows, identities, strict=True)]
    media = MediaWriter(job, root, cells, masker)
    job.report.title = own_title(table, media.screen)
    for row, identity, split in zip(track(rows, "rows"), identities, splits, strict=True):
        record = _record(job, table.stem, row, identity, split, media, masker)
        if record is not None:
            yield split, record
    note_unnamed(job, media, finder, (cell for row in rows for cell in row.cells.values()))


def _table(job: Job) -> Path:
    """Return the table or saved data set to read: the one named, or the only one there.

    Raises:
        DataError: naming the tables that are there, if the one named is not, or if none or several are there.
    """
    if job.file is not None:
        return job.file
    found = [p for pattern in _TABLES for p in sorted(job.source.glob(pattern))]
    chats = [p for suffix in CHAT_SUFFIXES for p in sorted(job.source.glob(f"*{suffix}"))]
    if job.options.table:
        named = job.source / job.options.table
        if path_exists(named):
            return named
        known = did_you_mean(job.options.table, [p.name for p in (*found, *chats)])
        raise DataError(f"There is no table {job.options.table!r} in {job.source}. {known}")
    if any((job.source / name).is_file() for name in ("dataset_dict.json", "state.json")) or _hub_shards(job.source):
        return job.source
    found = found or chats
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise DataError(f"{job.source} must hold one table (it holds: {names}). Name it with --table NAME.")
    return found[0]


def _check_columns(job: Job, options: FolderOptions) -> None:
    if not options.image and not options.volume:
        job.report.note("Neither --image nor --volume is given: the records are text only.")
    if bool(options.question) == bool(options.prompt):
        raise DataError("Give either --question COLUMN or --prompt 'one question for all rows'.")
    if options.patient and options.patient in options.kept():
        raise DataError(
            f"--keep {options.patient} would write the patients' identifiers into the records. Leave it out."
        )


def _check_media_columns(job: Job, options: FolderOptions, rows: list[_Row], root: Path) -> None:
    """Raise if no column of images or volumes is given although the table has one.

    Raises:
        DataError: naming the columns with the flags that take them.
    """
    if options.image or options.volume or options.text_only:
        return
    flags = media_columns([row.cells for row in rows], root, job.source)
    if flags:
        named = ", ".join(f"{flag} {shlex.quote(column)}" for column, flag in flags.items())
        raise DataError(
            f"Neither --image nor --volume is given, but columns of the table name files that exist: {named}. Give one or both of "
            "these flags, or --text-only for records without images."
        )


def _rows(job: Job, table: Path, options: FolderOptions) -> Iterator[_Row]:
    """Yield the rows that are not blank in the columns in use."""
    columns = [
        options.image,
        options.volume,
        options.question,
        options.answer,
        options.id,
        options.patient,
        options.split,
    ]
    used = [column for column in columns if column]
    needed = used + options.kept()
    if table.is_dir():
        source = _hub_rows(job, table, needed) if _hub_shards(table) else _saved_rows(table, needed)
    else:
        cells = job.rows(table, needed, any_encoding=True, encoding=options.encoding)
        source = (_Row(row, f"row {number}", "") for number, row in enumerate(cells, start=2))
    for row in source:
        if any(row.cells.get(column) not in (None, "", []) for column in used):
            yield row


def _hub_shards(folder: Path) -> list[tuple[str, Path]]:
    """Return (split, file) of the parquet shards of a data set as the hub stores it, in `data/` or the folder itself."""
    files = [*sorted(folder.glob("*.parquet")), *sorted(folder.glob("data/*.parquet"))]
    return [(match["split"], file) for file in files if (match := _HUB_SHARD.fullmatch(file.name))]


def _hub_rows(job: Job, folder: Path, needed: list[str]) -> Iterator[_Row]:
    """Yield the rows of a data set in parquet shards, with the split that the shard's name states."""
    for split, file in _hub_shards(folder):
        for number, cells in enumerate(job.rows(file, needed), start=1):
            yield _Row(cells, f"row {number} of {file.stem}", split)


def _saved_rows(folder: Path, needed: list[str]) -> Iterator[_Row]:
    """Yield the rows of a data set that `datasets` saved to disk; pictures stay encoded."""
    import datasets

    from medmvl.data.tables import require_columns

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, TypeError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{folder} is not a readable saved data set: {str(error).splitlines()[0]}.") from error
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    for name, data in splits.items():
        require_columns(folder, data.column_names, needed)
        for column, feature in data.features.items():
            if isinstance(feature, datasets.Image):
                data = data.cast_column(column, datasets.Image(decode=False))
            elif isinstance(getattr(feature, "feature", None), datasets.Image):
                data = data.cast_column(column, datasets.List(datasets.Image(decode=False)))
        for number, cells in enumerate(data, start=1):
            yield _Row(cells, f"row {number}{f' of {name}' if name else ''}", str(name))


def _splits(job: Job, rows: list[_Row], patients: list[str]) -> list[str]:
    """Return the split of every row: of its column, of the source, or by the shares of patients."""
    options: FolderOptions = job.options
    keys = [patient or f"\0{number}" for number, patient in enumerate(patients)]
    divided = divide(keys, options.test_share, options.val_share)
    counts = {name: list(divided.values()).count(name) for name in ("test", "validation")}
    for name, share in (("test", options.test_share), ("validation", options.val_share)):
        if share and not options.split and abs(counts[name] - share * len(divided)) > 1e-9:
            job.report.note(
                f"{name}: {counts[name]} of {len(divided)} patients (or rows), since {share:g} of them is no whole number."
            )
    known = {"val": "validation", "valid": "validation", "dev": "validation"}
    splits = []
    for row, key in zip(rows, keys, strict=True):
        given = (_text(row.cells, options.split) or row.split).lower() if options.split or row.split else ""
        splits.append(known.get(given, given) or divided[key])
    return splits


def _pseudonyms(job: Job, key_file: str | None) -> Pseudonyms:
    pseudonyms = Pseudonyms(key_file)
    job.report.note(
        "Patients stand under pseudonyms made with a secret key (HMAC-SHA256). Keep the key file (key_file; by default "
        "pseudonym.key in medmvl's folder of your user data) at your site, with a backup, and give it to nobody who gets the records."
    )
    return pseudonyms


def _media_columns(options: FolderOptions) -> list[MediaColumn]:
    chosen = (("image", options.image), ("image3d", options.volume))
    return [MediaColumn(kind, name) for kind, name in chosen if name]


def _media_cells(row: _Row, options: FolderOptions) -> list[tuple[MediaColumn, Any]]:
    return [(column, row.cells.get(str(column.name))) for column in _media_columns(options)]


def _named_files(row: _Row, options: FolderOptions) -> list[str]:
    """Return the files that a row names, without pictures in its cells."""
    entries = [entry for _, cell in _media_cells(row, options) for entry in entries_of(cell)]
    return [entry for entry in entries if isinstance(entry, str)]


def _record(
    job: Job, table: str, row: _Row, identity: Identity, split: str, media: MediaWriter, masker: Masker
) -> Record | None:
    """Return the record of a row, or None after counting it as faulty."""
    options: FolderOptions = job.options
    answer, question = _text(row.cells, options.answer), options.prompt or _text(row.cells, options.question)
    if not question or not answer:
        job.report.fault("empty question or answer", row.name)
        return None
    paths: dict[str, list[str]] = {}
    for column, cell in _media_cells(row, options):
        found = media.paths(cell, column, row.name, identity)
        if found is None:
            return None
        if found:
            paths[column.kind] = found
    identifier = _text(row.cells, options.id) or f"{table}-{row.name.removeprefix('row ').replace(' ', '-')}"
    texts = [masker.text(text, identity) for text in (identifier, question, answer)]
    if texts[1:] != [question, answer]:
        job.report.note("Texts that named their own patient or examination now hold pseudonyms instead.")
    asked = _with_placeholders(texts[1], paths)
    if asked is None:
        job.report.fault("placeholders of the question do not match its files", row.name)
        return None
    turns = [{"from": "human", "value": asked}]
    record: Record = {"id": texts[0], "conversations": turns}
    if split == "train":
        turns.append({"from": "gpt", "value": texts[2]})
    else:
        record["answer"] = texts[2]
    facts = {
        "task": options.task,
        "patient": masker.patient(identity),
        "answer_type": ("CLOSED" if yes_or_no(answer) else "OPEN") if options.task == "vqa" else None,
        "read": _reading(options),
        "synthetic": job.synthetic,
    }
    kept = {name: masker.value(row.cells[name], identity) for name in options.kept()}
    kept = {name: value for name, value in kept.items() if value not in (None, "")}
    return record | paths | {key: value for key, value in facts.items() if value} | kept


def _reading(options: FolderOptions) -> dict[str, Any]:
    given = options.reading().given()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _with_placeholders(question: str, paths: dict[str, list[str]]) -> str | None:
    """Return the question with its placeholders: those it has if they match, else in front; None if they do not match."""
    question = question.replace(VOLUME_ALIAS, VOLUME_PLACEHOLDER)
    wanted = {IMAGE_PLACEHOLDER: len(paths.get("image", [])), VOLUME_PLACEHOLDER: len(paths.get("image3d", []))}
    found = {mark: question.count(mark) for mark in wanted}
    if found == wanted:
        return question
    if any(found.values()):
        return None
    return "".join(f"{mark}\n" * count for mark, count in wanted.items()) + question


def _text(row: dict[str, Any], column: str | None) -> str:
    return cell_text(row.get(column)) if column else ""


FOLDER = DATASETS.add(
    "folder",
    Converter(
        name="folder",
        title="Your own data: a table and a folder of images or volumes",
        license=NOT_STATED,
        homepage="docs/own-data.md",
        layout="one .csv, .tsv, .xlsx or .parquet table with a column of paths relative to it (or of pictures), a data set saved "
        "by `datasets` or in the hub's parquet shards, or a .json or .jsonl chat file as of LLaMA-Factory, ms-swift or ShareGPT.",
        run=run,
        options=FolderOptions,
    ),
)
