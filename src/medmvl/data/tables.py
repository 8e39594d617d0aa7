"""Row-by-row reading of tables (csv, xlsx, parquet) and JSON in the encodings and delimiters in use."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ijson

from medmvl.errors import DataError, shown, the_named
from medmvl.files import existing_file
from medmvl.progress_bar import progress_bar

csv.field_size_limit(2**24)  # reports are longer than the default of 128 kB allows

OnFault = Callable[[str, str], None]
"""Called with the reason and the name of an item that cannot be used."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def iter_csv(
    path: Path,
    required: Iterable[str] = (),
    on_fault: OnFault | None = None,
    *,
    any_encoding: bool = False,
    encoding: str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Iterator[dict[str, str]]:
    """Yield the rows of a csv file (also .gz), without blank ones.

    The delimiter is a comma, semicolon, tab or bar, by the header. The encoding is UTF-8 with or without a byte order mark,
    or UTF-16 or UTF-32.

    Args:
        path: the table.
        required: columns that must be there.
        on_fault: called with (reason, name) for a row in another encoding or with more cells than the header, which is then
            skipped; without it such a row is an error.
        any_encoding: also read Windows-1252, the encoding of Excel in Western Europe.
        encoding: the encoding, such as "cp850", if the caller knows it.
        on_note: called with a sentence if the encoding was assumed, because most encodings of 8 bits cannot be told apart.

    Raises:
        DataError: if the file is missing or damaged, the encoding is not known, its header is in another encoding or lacks a required column.
    """
    file = existing_file(path, "table")
    wanted = list(required)
    try:
        codec = _codec(encoding) if encoding is not None else _encoding(file, any_encoding)
        if encoding is None and codec == _WESTERN and on_note is not None:
            on_note(_ASSUMED)
        with (
            _open(file)(file, "rt", encoding=codec, errors="surrogateescape", newline="") as handle,
            progress_bar("table", file.stat().st_size, percent=True) as bar,
        ):
            delimiter = _delimiter(handle, wanted)
            lines = _Lines(_bounded_lines(handle, file))
            reader = csv.DictReader(lines, delimiter=delimiter, restkey=_MORE, restval="")
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            if any(map(_undecoded, header)):
                raise DataError(f"{file}: the header is not {_shown(codec)}. Save the table as UTF-8.")
            require_columns(file, header, wanted)
            lines.fault(delimiter)  # forget the header
            for row in reader:
                bar.update(_bytes_read(handle.buffer))
                more: Any = row.pop(_MORE, [])
                cells = {key: value.strip() for key, value in row.items() if key}
                fault = _row_fault(cells, more, codec) or lines.fault(delimiter)
                if fault and on_fault is None:
                    raise DataError(f"{file}, line {reader.line_num}: {fault.removeprefix('is ')}.")
                if fault and on_fault is not None:
                    on_fault(f"row {fault.split(':')[0]}", f"{file.name}, line {reader.line_num}")
                elif any(cells.values()):
                    yield cells
    except (EOFError, gzip.BadGzipFile, zlib.error, csv.Error, UnicodeError) as error:
        raise DataError(f"{file} is damaged: {error}. Download it again.") from error


def _bytes_read(handle: Any) -> int:
    """Return how many bytes of an open file were read; of a gzip file those on the disk."""
    on_disk: Any = handle.fileobj if isinstance(handle, gzip.GzipFile) else handle
    return int(on_disk.tell())


def _bounded_lines(handle: Any, file: Path) -> Iterator[Any]:
    """Yield the lines of an open text or binary file.

    Raises:
        DataError: if one is longer than `MOST_LINE`: a few kilobytes of gzip can hold a line that fills the memory.
    """
    while line := handle.readline(MOST_LINE):
        if len(line) == MOST_LINE:
            raise DataError(
                f"{file} has a line of more than {MOST_LINE // 2**20} MiB. It is no table of texts, or damaged."
            )
        yield line


class _Lines:
    """Lines of a csv file, which remembers those of the row that is being read."""

    def __init__(self, handle: Iterable[str]) -> None:
        self._source = iter(handle)
        self._row: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._source)
        self._row.append(line)
        return line

    def fault(self, delimiter: str) -> str:
        """Return what is wrong with the row read last, or "", and begin the next one.

        A quotation mark that is never closed takes all rows to the end of the file into one cell.
        """
        row, self._row = self._row, []
        if len(row) > 1:
            try:
                list(csv.reader(row, delimiter=delimiter, strict=True))
            except csv.Error as error:
                if "unexpected end" in str(error):
                    return "has a quotation mark that is not closed"
        return ""


def _row_fault(cells: dict[str, str], more: list[str], codec: str) -> str:
    """Return what is wrong with a row, or ""."""
    if any(map(_undecoded, cells.values())):
        return f"is not {_shown(codec)}: save the table as UTF-8"
    if any(cell.strip() for cell in more):
        return "has more cells than the header has: put texts that hold the delimiter in quotes"
    return ""


#: Longest line of a csv file, in characters or bytes; a cell may have 16 MiB.
MOST_LINE = 2**26
_WESTERN = "cp1252"
_ASSUMED = (
    "The table is not UTF-8; it was read as Windows-1252 (cp1252), which cannot be told from other encodings of 8 bits with "
    "certainty. If letters with accents are wrong in the records, give its encoding, such as --encoding cp850 or mac_roman."
)
#: What does not occur in Western texts of Windows-1252, but does in those of cp437, cp850, Mac Roman, Latin-9 or cp1250, or of
#: other scripts: four letters beyond ASCII in a row; unused bytes; symbols within a word; a trade mark or dagger at the start
#: of a word; the capitals of Windows-1252's second row within a word of small letters.
_NOT_WESTERN = re.compile(
    rb"[\x80-\xff]{4,}"
    rb"|[\x81\x8d\x8f\x90\x9d]"
    rb"|[A-Za-z][\x80\x82\x84\x86-\x89\x8b\x93-\x95\x98\x99\x9b\xa1-\xa9\xac\xaf\xb3\xb6\xb8\xb9\xbc-\xbf][a-z]"
    rb"|(?:^|[\s;,|\"'(])[\x86\x87\x99][A-Za-z]"
    rb"|[a-z][\x8a\x8c\x8e\x9f][a-z]"
)
#: Key of the cells of a row that has more of them than the header.
_MORE = "\0more"
_DELIMITERS = ",;\t|"


def _open(file: Path) -> Callable[..., Any]:
    with file.open("rb") as handle:
        return gzip.open if handle.read(2) == b"\x1f\x8b" else open


def _encoding(file: Path, any_encoding: bool) -> str:
    """Return the encoding of a table.

    With `any_encoding` it is Windows-1252 if lines are not UTF-8 and none is UTF-8 beyond ASCII. If there are both kinds, the
    table is a UTF-8 one with faulty lines.
    """
    with _open(file)(file, "rb") as handle:
        head = handle.read(64)
        if head[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
            return "utf-32"
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        for odd, codec in ((1, "utf-16-le"), (0, "utf-16-be")):
            if len(head) > 3 and not any(head[odd::2]):
                return codec
        handle.seek(0)
        foreign = False
        for line in _bounded_lines(handle, file) if any_encoding else ():
            if line.isascii():
                continue
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                foreign = True
                if _NOT_WESTERN.search(line):
                    raise DataError(
                        f"{file} is neither UTF-8 nor Windows-1252, but text in an older encoding (DOS, Macintosh, Central "
                        "European, Greek, Russian, Chinese ...). Save the table as UTF-8, or name its encoding with --encoding, "
                        "such as cp850, mac_roman, cp1250 or gbk."
                    ) from None
            else:
                return "utf-8-sig"
    return _WESTERN if foreign else "utf-8-sig"


def _codec(name: str) -> str:
    """Return the name of an encoding of texts, or raise a DataError."""
    try:
        b"xx".decode(name, "replace")
    except (LookupError, ValueError):
        raise DataError(
            f"The encoding {shown(name)} is not known. Use utf-8, cp1252, cp850, mac_roman, gbk ..."
        ) from None
    return name


def _shown(codec: str) -> str:
    return {"utf-8-sig": "UTF-8", _WESTERN: "Windows-1252"}.get(codec, codec)


def _delimiter(handle: Any, required: list[str]) -> str:
    """Return the delimiter by the header line, and leave `handle` in front of that line."""
    line = handle.readline(MOST_LINE)
    if line.lower().startswith("sep=") and len(line.strip()) == 5:  # Excel's own hint
        return str(line[4])
    handle.seek(0)

    def columns(delimiter: str) -> list[str]:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]

    return max(_DELIMITERS, key=lambda d: (sum(name in columns(d) for name in required), len(columns(d))))


def _undecoded(text: str) -> bool:
    """Return whether a text holds bytes that were not in its file's encoding (kept as lone surrogates)."""
    return not text.isascii() and _LONE_SURROGATE.search(text) is not None


def iter_xlsx(path: Path, required: Iterable[str] = ()) -> Iterator[dict[str, str]]:
    """Yield the rows of the first sheet of an .xlsx file as texts, without blank ones.

    Raises:
        DataError: if the file is missing, not a workbook, or lacks a required column.
    """
    import openpyxl

    file = existing_file(path, "table")
    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        rows = book.worksheets[0].iter_rows(values_only=True)
        header = ["" if cell is None else str(cell).strip() for cell in next(rows, ())]
        require_columns(file, header, required)
        for row in rows:
            cells = {name: _cell(value) for name, value in zip(header, row, strict=False) if name}
            if any(cells.values()):
                yield cells
        book.close()
    except DataError:
        raise
    except Exception as error:  # openpyxl, zipfile, zlib and expat raise many types for a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{file} is not a readable .xlsx workbook: {reason}. Download it again.") from error


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
        with progress_bar("table", table.metadata.num_rows, percent=True) as bar:
            for batch in table.iter_batches(batch_size=64):
                yield from batch.to_pylist()
                bar.update(bar.done + len(batch))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} is not a readable parquet file: {error}. Download it again.") from error


def iter_table(
    path: Path, required: Iterable[str] = (), on_fault: OnFault | None = None, **text: Any
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .csv, .tsv, .txt, .csv.gz, .xlsx or .parquet file; arguments as for `iter_csv`.

    Raises:
        DataError: for another suffix, an encoding of a file that is no text, or as the reader of that kind says.
    """
    suffix = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
    if suffix in ("csv", "tsv", "txt"):
        return iter_csv(path, required, on_fault, **text)
    if text.get("encoding") is not None:
        raise DataError(f"{path} is no text file: an encoding has no meaning for it. Leave it out.")
    readers: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {"xlsx": iter_xlsx, "parquet": iter_parquet}
    if suffix not in readers:
        raise DataError(f"{path}: a table must be .csv, .tsv, .txt, .csv.gz, .xlsx or .parquet.")
    return readers[suffix](path, required)


def require_columns(file: Path, present: Iterable[str], required: Iterable[str]) -> None:
    """Raise a DataError that names the columns which `file` lacks, and those it has."""
    have, required = list(present), list(required)
    twice = [name for name in required if have.count(name) > 1]
    if twice:
        raise DataError(
            f"{file} has {have.count(twice[0])} columns named {twice[0]!r}. Rename those that are not meant."
        )
    missing = [name for name in required if name not in have]
    if missing:
        names = [name if len(name) <= 60 else f"{name[:60]}…" for name in have[:40]]
        more = ", ..." if len(have) > 40 else ""
        raise DataError(f"{file} lacks {the_named('column', missing)}. It has: {', '.join(names) or 'none'}{more}.")


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
            with progress_bar("JSON", file.stat().st_size, percent=True) as bar:
                for item in read(handle):
                    bar.update(handle.tell())
                    yield item
        except (ijson.JSONError, ValueError, RecursionError) as error:
            raise DataError(f"{file} is cut off or not JSON: {error}. Download it again.") from error
