"""Files the way every room wants them: written whole or not at all, read with a message when they are not right."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medmvl.errors import DataError

PathLike = str | os.PathLike[str]


@contextmanager
def atomic(path: PathLike) -> Iterator[Path]:
    """Give a temporary file name beside `path`; on success flush it to disk and rename it to `path`.

    A reader therefore sees the old file or the whole new one. On an error the temporary file is removed.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept last because writers (numpy, nibabel, PIL) choose the format by it.
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Write UTF-8 `text` to `path`, whole or not at all."""
    with atomic(path) as temporary:
        # Half of a surrogate pair cannot be UTF-8; written as \\ud800 it stays valid JSON and harmless elsewhere.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: PathLike, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` as UTF-8 JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def write_jsonl(path: PathLike, rows: Iterable[Any]) -> None:
    """Write `rows` as JSON Lines to `path`, whole or not at all; rows are consumed one by one."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Raises:
        DataError: if the file is missing or is not JSON.
    """
    file = existing_file(path)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file} is not a valid UTF-8 JSON file: {error}.") from error


def iter_jsonl(path: PathLike, on_broken: Callable[[int], None] | None = None) -> Iterator[Any]:
    """Yield the values of a JSON Lines file; blank lines are passed over.

    Args:
        path: the file.
        on_broken: told the number of a line that is not JSON, which is then left out; without it such a line is an error.

    Raises:
        DataError: if the file is missing, or with the line number where a line is not JSON.
    """
    file = existing_file(path)
    with file.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                if on_broken is None:
                    raise DataError(f"{file}, line {number}: not valid UTF-8 JSON: {error}.") from error
                on_broken(number)
                continue
            yield value


def existing_file(path: PathLike, what: str = "file") -> Path:
    """Return `path` as a Path, or raise a DataError if no file is there."""
    file = Path(path)
    if not file.is_file():
        state = "is a folder, not a file" if file.is_dir() else "does not exist"
        raise DataError(f"The {what} {file} {state}.")
    return file


def existing(path: PathLike, what: str = "file or folder") -> Path:
    """Return `path` as a Path, or raise a DataError if nothing is there."""
    found = Path(path)
    if not found.exists():
        raise DataError(f"The {what} {found} does not exist.")
    return found


def existing_folder(path: PathLike, what: str = "folder") -> Path:
    """Return `path` as a Path, or raise a DataError if no folder is there."""
    folder = Path(path)
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.is_file() else "does not exist"
        raise DataError(f"The {what} {folder} {state}.")
    return folder


def resolve_under(root: PathLike, relative: PathLike, what: str = "file") -> Path:
    """Return `root / relative` after checking that it exists and stays below `root`.

    An absolute `relative` is allowed only if it lies below `root`; symbolic links are followed before the check.

    Raises:
        DataError: if the path leaves `root` or nothing is there.
    """
    base = Path(root).resolve()
    path = (base / relative).resolve()
    if not path.is_relative_to(base):
        raise DataError(f"The {what} path {str(relative)!r} leaves the root {base}. Use a path below that root.")
    if not path.exists():
        raise DataError(f"The {what} {str(relative)!r} does not exist below {base}.")
    return path


def sha256(path: PathLike) -> str:
    """Return the SHA-256 digest of a file as 64 hex digits; the file is read in blocks."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
