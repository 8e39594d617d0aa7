"""Reading other people's tables and JSON: row by row, in the encodings they come in, with the column named if it is not there."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ijson

from medmvl.errors import DataError
from medmvl.files import existing_file

csv.field_size_limit(2**24)  # reports are longer than the default of 128 kB allows

OnFault = Callable[[str, str], None]
"""Is told the reason and the name of an item that cannot be used."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def iter_csv(path: Path, required: Iterable[str] = (), on_fault: OnFault | None = None) -> Iterator[dict[str, str]]:
    """Yield the rows of a csv file (also .gz): UTF-8 with or without a byte order mark, or UTF-16 with one.

    Args:
        path: the table.
        required: columns that must be there.
        on_fault: told (reason, name) of a row in another encoding, which is then left out; without it such a row is an
            error.

    Raises:
        DataError: if the file is missing or damaged, its header is in another encoding or lacks a required column.
    """
    file = existing_file(path, "table")
    opener: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as handle:
            encoding = "utf-16" if handle.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with opener(file, "rt", encoding=encoding, errors="surrogateescape", newline="") as handle:
            reader = csv.DictReader(handle)
            header = list(reader.fieldnames or ())
            if any(map(_undecoded, header)):
                raise DataError(f"{file}: the header is not UTF-8. Save the table as UTF-8.")
            require_columns(file, header, required)
            for row in reader:
                cells = {key: (value or "").strip() for key, value in row.items() if key is not None}
                if not any(map(_undecoded, cells.values())):
                    yield cells
                elif on_fault is not None:
                    on_fault("row is not UTF-8", f"{file.name}, line {reader.line_num}")
                else:
                    raise DataError(f"{file}, line {reader.line_num}: not UTF-8. Save the table as UTF-8.")
    except (EOFError, gzip.BadGzipFile, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file} is damaged: {error}. Download it again.") from error


def _undecoded(text: str) -> bool:
    """Return whether a text holds bytes that were not in its file's encoding (kept as lone surrogates)."""
    return not text.isascii() and _LONE_SURROGATE.search(text) is not None


def iter_xlsx(path: Path, required: Iterable[str] = ()) -> Iterator[dict[str, str]]:
    """Yield the rows of the first sheet of an .xlsx file as texts.

    Raises:
        DataError: if the file is missing, not a workbook, or lacks a required column.
    """
    import zipfile

    import openpyxl

    file = existing_file(path, "table")
    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, OSError, ValueError) as error:
        raise DataError(f"{file} is not a readable .xlsx workbook: {error}. Download it again.") from error
    rows = book.worksheets[0].iter_rows(values_only=True)
    header = ["" if cell is None else str(cell).strip() for cell in next(rows, ())]
    require_columns(file, header, required)
    for row in rows:
        yield {name: _cell(value) for name, value in zip(header, row, strict=False) if name}
    book.close()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def iter_parquet(path: Path, required: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file as dictionaries, a small batch in memory at a time.

    Raises:
        DataError: if the file is missing, damaged, or lacks a required column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = existing_file(path, "table")
    try:
        table = pq.ParquetFile(file)
        require_columns(file, table.schema_arrow.names, required)
        for batch in table.iter_batches(batch_size=64):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a readable parquet file: {error}. Download it again.") from error


def iter_table(path: Path, required: Iterable[str] = (), on_fault: OnFault | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .csv, .csv.gz, .xlsx or .parquet file; `on_fault` as for `iter_csv`.

    Raises:
        DataError: for another suffix, or as the reader of that kind says.
    """
    suffix = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
    if suffix == "csv":
        return iter_csv(path, required, on_fault)
    readers: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {"xlsx": iter_xlsx, "parquet": iter_parquet}
    if suffix not in readers:
        raise DataError(f"{path}: a table must be .csv, .csv.gz, .xlsx or .parquet.")
    return readers[suffix](path, required)


def require_columns(file: Path, present: Iterable[str], required: Iterable[str]) -> None:
    """Raise a DataError that names the columns which `file` lacks, and those it has."""
    have = list(present)
    missing = [name for name in required if name not in have]
    if missing:
        raise DataError(f"{file} lacks the column(s) {', '.join(missing)}. It has: {', '.join(have) or 'none'}.")


def iter_json_array(path: Path) -> Iterator[Any]:
    """Yield the items of a JSON array one by one, so that a file of gigabytes needs no memory.

    Raises:
        DataError: if the file is missing, cut off, or no array.
    """
    return _stream(path, lambda handle: ijson.items(handle, "item", use_float=True), b"[", "array")


def iter_json_object(path: Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the (key, value) pairs of a JSON object one by one.

    Raises:
        DataError: if the file is missing, cut off, or no object.
    """
    return _stream(path, lambda handle: ijson.kvitems(handle, prefix, use_float=True), b"{", "object")


def iter_json_under(path: Path, key: str) -> Iterator[Any]:
    """Yield the items of the array that stands under the top-level `key` of a JSON object."""
    return _stream(path, lambda handle: ijson.items(handle, f"{key}.item", use_float=True), b"{", "object")


def _stream(path: Path, read: Callable[[Any], Iterator[Any]], opening: bytes, kind: str) -> Iterator[Any]:
    file = existing_file(path, "JSON file")
    with file.open("rb") as handle:
        head = handle.read(64)
        start = 3 if head.startswith(b"\xef\xbb\xbf") else 0
        head = head[start:]
        if head.startswith(b"version https://git-lfs"):
            raise DataError(f"{file} is a Git-LFS pointer, not the data. Fetch it with: git lfs pull")
        if not head.lstrip().startswith(opening):
            raise DataError(f"{file} does not begin like a JSON {kind}.")
        handle.seek(start)
        try:
            yield from read(handle)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise DataError(f"{file} is cut off or not JSON: {error}. Download it again.") from error
