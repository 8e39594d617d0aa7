"""Files of records: JSON arrays, JSON Lines and Parquet, read one record at a time. No pixels are read here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmvl.data.json_items import item_spans
from medmvl.data.record import parse_record
from medmvl.data.sample import Sample
from medmvl.errors import DataError
from medmvl.files import BAD_JSON, PathLike, atomic, existing_file, json_fault, parse_json, write_json, write_jsonl
from medmvl.remote import RemotePath, as_root, local_copy


@dataclass(frozen=True, slots=True)
class Located:
    """A value read from a file with its place; `error` is set instead if it could not be read."""

    where: str
    record: Any = None
    error: DataError | None = None


def file_format(path: PathLike) -> str:
    """Return "json" (an array), "jsonl" or "parquet", by the file's first bytes.

    Raises:
        DataError: if the file is missing, empty or begins like none of the three.
    """
    file = existing_file(path, "data file")
    with file.open("rb") as handle:
        if handle.read(4) == b"PAR1":
            return "parquet"
        handle.seek(0)
        head = b""
        while not head:
            block = handle.read(4096)
            if not block:
                raise DataError(f"The data file {file} is empty.")
            head = block.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:1] == b"[":
        return "json"
    if head[:1] == b"{":
        return "jsonl"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"The data file {file} is UTF-16 or UTF-32. Save it as UTF-8.")
    raise DataError(
        f"The data file {file} is neither a JSON array, JSON Lines, nor Parquet: it begins like none of them."
    )


def read_records(path: PathLike) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON array, a JSON Lines or a Parquet file, unchecked.

    Raises:
        DataError: if the file is missing or damaged, with the line of the damage.
    """
    for located in iter_located(path):
        if located.error is not None:
            raise located.error
        yield located.record


def read_samples(path: PathLike) -> Iterator[Sample]:
    """Yield the file's records as Samples (paths as written); raise a DataError at the first bad one."""
    for located in iter_located(path):
        if located.error is not None:
            raise located.error
        yield parse_record(located.record, located.where)


def local_records(path: PathLike) -> Path:
    """Return a records file, or the local copy of one that is given by its URL.

    Raises:
        DataError: if there is no such file.
    """
    source = as_root(path, "data file")
    return local_copy(source, keep=True) if isinstance(source, RemotePath) else existing_file(source, "data file")


def iter_located(path: PathLike) -> Iterator[Located]:
    """Yield every record with its place; a broken line gives a `Located` with `error`, and the next line follows."""
    file = local_records(path)
    readers = {"json": _iter_json, "jsonl": _iter_jsonl, "parquet": _iter_parquet}
    return readers[file_format(file)](file)


def count_records(path: PathLike) -> int | None:
    """Return the number of records of a file without reading them, for a progress bar; None if it cannot be told."""
    try:
        file = local_records(path)
        kind = file_format(file)
        if kind == "jsonl":
            with file.open("rb") as handle:
                return sum(not line.isspace() for line in handle)
        if kind == "json":
            return len(item_spans(file.read_bytes().decode("utf-8-sig")))
        import pyarrow.parquet as pq

        return int(pq.ParquetFile(file).metadata.num_rows)
    except (DataError, OSError, ValueError, IndexError):  # whoever reads the file says what is wrong with it
        return None


def decode_line(line: bytes, where: str) -> Any:
    """Return the JSON value of one encoded record.

    Raises:
        DataError: if it is not UTF-8 JSON.
    """
    try:
        return parse_json(line.removeprefix(b"\xef\xbb\xbf").decode())  # bytes would be guessed to be UTF-16 or UTF-32
    except BAD_JSON as error:
        raise DataError(f"{where}: not valid UTF-8 JSON: {json_fault(error)}.") from error


def _iter_jsonl(file: Path) -> Iterator[Located]:
    with file.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            where = f"{file.name}, line {number}"
            try:
                yield Located(where, decode_line(line, where))
            except DataError as error:
                yield Located(where, error=error)


def _iter_json(file: Path) -> Iterator[Located]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
        spans = item_spans(text)
    except (ValueError, IndexError) as error:
        reason = "it ends in the middle" if isinstance(error, IndexError) else json_fault(error)
        yield Located(file.name, error=DataError(f"{file} is not a valid UTF-8 JSON array: {reason}."))
        return
    for number, (begin, end) in enumerate(spans, start=1):
        where = f"{file.name}, item {number}"
        try:
            yield Located(where, decode_line(text[begin:end].encode(), where))
        except DataError as error:
            yield Located(where, error=error)


def _iter_parquet(file: Path) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield Located(f"{file.name}, row {number}", drop_nulls(row))
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Located(file.name, error=DataError(f"{file} is not a readable Parquet file: {error}."))


def drop_nulls(value: Any) -> Any:
    """Return a value without null fields: a column table writes a null where a record simply lacked the key."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [drop_nulls(item) for item in value]
    return value


def write_records(path: PathLike, records: Iterable[dict[str, Any]]) -> None:
    """Write records atomically in the format that the suffix of `path` names.

    Raises:
        DataError: for another suffix, or if the records' fields cannot stand in one Parquet table.
    """
    suffix = Path(path).suffix
    if isinstance(records, Mapping | str):
        raise DataError(f"records must be a list of records, not a {type(records).__name__}.")
    if suffix == ".jsonl":
        write_jsonl(path, records)
    elif suffix == ".json":
        write_json(path, list(records))
    elif suffix == ".parquet":
        _write_parquet(path, list(records))
    else:
        raise DataError(f"Cannot write records to {path}: the suffix must be .json, .jsonl or .parquet.")


def _write_parquet(path: PathLike, records: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # from_pylist alone takes its columns from the first record and drops the others' keys without a word.
        names = list(dict.fromkeys(key for record in records for key in record))
        table = pa.table({name: [record.get(name) for record in records] for name in names})
    except (pa.ArrowException, TypeError) as error:
        raise DataError(
            f"Cannot write {path}: a field has different types in different records ({error}). Use .jsonl instead."
        ) from error
    with atomic(path) as temporary:
        pq.write_table(table, temporary)
