"""Atomic writes, permissions of outputs, locks on outputs, and reads of JSON files with messages a user can act on."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
import stat
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml

from medmvl.errors import BusyError, DataError, OutputError, printable, require_path, shown

PathLike = str | os.PathLike[str]

#: What Python's JSON parser raises: not UTF-8, not JSON, an integer of more than 4300 digits, or too many nested brackets.
BAD_JSON = (ValueError, RecursionError)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: if it is not JSON, or one object has a key twice, of which Python would keep the last value.
        RecursionError: if its brackets are nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"one object has the key {shown(twice)} twice")
    return found


def json_fault(error: Exception) -> str:
    """Return the reason in an exception of `BAD_JSON`, without the values of the file."""
    if isinstance(error, RecursionError):
        return "brackets are nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8 text"
    text = str(error)
    return "it holds an integer of more than 4300 digits" if "integer string conversion" in text else text


#: Most values of a YAML file whose aliases are written out; a recipe has some hundred.
MOST_YAML_VALUES = 100_000


def load_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return the value of a YAML text of plain values.

    Raises:
        yaml.YAMLError: if it is not YAML, or its aliases expand to more than `MOST_YAML_VALUES` values: ten lines can
            stand for 10^11 of them.
    """
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if _expanded_size(node, {}) > MOST_YAML_VALUES:
            raise yaml.YAMLError(f"its aliases expand to more than {MOST_YAML_VALUES:,} values")
        return None if node is None else reader.construct_document(node)
    finally:
        reader.dispose()


def _expanded_size(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Return the number of values below a node, each alias counted as what it stands for; one that holds itself is infinite."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # as long as it is being counted
        items = (item for entry in node.value for item in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] = 1 + sum(_expanded_size(item, known) for item in items)
    return known[id(node)]


@contextmanager
def atomic(path: PathLike) -> Iterator[Path]:
    """Yield the name of a temporary file in the same folder; on success flush it to disk and rename it to `path`.

    A reader sees the old file or the complete new one. On an error the temporary file is removed.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept last because writers (numpy, nibabel, PIL) choose the format by it.
    temporary = target.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.{target.name}")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: PathLike, *, replace: bool = False, private: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder next to `target`; on success flush it to disk and rename it to `target`.

    A reader sees no folder (or the old one) or the complete new one. On an error the temporary folder is removed.
    Temporary names are unique, so two writers of one target never mix their files: the second to finish is refused.

    Args:
        target: may be a symbolic link; the folder it points to is written.
        replace: whether a folder that exists is replaced; otherwise it must be empty.
        private: whether only the user may read the result (patient data); otherwise everybody may (models), see `sync_tree`.

    Raises:
        OutputError: if `target` exists and must not be replaced, or no folder can be made there.
    """
    given, target = Path(target), _resolved(target)
    if not replace:
        _require_absent_or_empty(given)
    _remove_abandoned(target)
    temporary = _make_temporary(given, target)
    try:
        yield temporary
        sync_tree(temporary, private=private)
        if replace:
            _replace_folder(temporary, target)
        else:
            _publish_folder(temporary, target, given)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


#: Ends of the names of temporary folders.
_PARTIAL, _OLD = ".partial", ".old"


def _resolved(target: PathLike) -> Path:
    """Return the folder that a symbolic link points to."""
    try:
        return Path(target).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a NUL character
        raise OutputError(f"{printable(str(target))} is no place for a folder. Choose another destination.") from error


def _make_temporary(given: Path, target: Path) -> Path:
    """Make the temporary folder of `target`, which messages call `given`, and its parents; return its path."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{_PARTIAL}")
    try:
        temporary.mkdir(parents=True, mode=_PRIVATE_FOLDER)  # opened to others when it is complete
    except OSError as error:
        raise OutputError(f"No folder can be made at {given}: {error.strerror}. Choose another destination.") from error
    return temporary


def _require_absent_or_empty(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} exists and is not empty. Choose another destination or remove it.")


def _publish_folder(temporary: Path, target: Path, given: Path) -> None:
    """Rename a folder to a name that is free or an empty folder; the system refuses any other in the same step."""
    try:
        temporary.rename(target)
    except OSError as error:
        _require_absent_or_empty(given)
        raise OutputError(f"{given} cannot be written: {error.strerror}. Choose another destination.") from error


def _replace_folder(temporary: Path, target: Path) -> None:
    old = temporary.with_suffix(_OLD)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(target: Path) -> None:
    """Remove temporary folders of `target` whose process has ended."""
    prefix = f".{target.name}."
    for folder in target.parent.glob(f"{glob.escape(prefix)}*"):
        process = folder.stem.removeprefix(prefix).partition("-")[0]
        if (
            folder.suffix in (_PARTIAL, _OLD)
            and process.isascii()
            and process.isdigit()
            and not process_runs(int(process))
        ):
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned_files(folder: Path, name: str) -> None:
    """Remove the temporary files of `atomic` whose process has ended; they may hold patients' data.

    Args:
        name: pattern of the names of their targets.
    """
    for path in folder.glob(f".[0-9]*.{'[0-9a-f]' * 8}.{name}"):
        process = path.name.split(".")[1]
        if process.isascii() and process.isdigit() and not process_runs(int(process)):
            path.unlink(missing_ok=True)


def process_runs(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


#: Permissions of models and exports, whatever the umask: a server that runs as another user can read them.
_SHARED_FOLDER, _SHARED_FILE = 0o755, 0o644
#: Permissions of what holds patient data.
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600


def private_folder(path: PathLike) -> Path:
    """Make a folder that only the user can open (mode 0700), and its parents; return its path.

    The mode of a folder that exists already is kept: its owner may have opened it to a group.

    Raises:
        OutputError: if no folder can be made there.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=_PRIVATE_FOLDER)
    except OSError as error:
        raise OutputError(
            f"No folder can be made at {folder}: {error.strerror}. Choose another destination."
        ) from error
    return folder


def sync_tree(folder: Path, *, private: bool = False) -> None:
    """Flush every file and folder below `folder` to disk and set their permissions, independent of the umask.

    Some libraries write weights with mode 0600, which a server that runs as another user cannot read.

    Args:
        folder: included.
        private: 0700 for folders and 0600 for files; otherwise 0755 and 0644.
    """
    folder_mode, file_mode = (_PRIVATE_FOLDER, _PRIVATE_FILE) if private else (_SHARED_FOLDER, _SHARED_FILE)
    for root, _, files in os.walk(folder):
        for name in files:
            with (Path(root) / name).open("rb") as handle:
                os.fchmod(handle.fileno(), file_mode)
                os.fsync(handle.fileno())
        Path(root).chmod(folder_mode)
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class OutputLock:
    """The right of one process to write an output file or folder; released on exit, however the process ends.

    It is a file lock of the operating system (flock) on a hidden file that names the process. A child process made by
    fork does not inherit the lock. On a file system without locks the named process is asked for instead. Temporary files
    that a killed process left there are removed.

    Args:
        output: the file or folder; a folder is made if absent.
        folder: whether `output` is a folder; the hidden file is then in it, otherwise next to it.

    Raises:
        BusyError: naming the process that writes there.
        OutputError: if nothing can be written there, or `output` is of another kind (a folder, a pipe, a device).
    """

    def __init__(self, output: PathLike, *, folder: bool = False) -> None:
        path = Path(output)
        _require_kind(path, folder)
        self.path = path / ".lock" if folder else path.with_name(f".{path.name}.lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = self._acquire(path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}. Choose another output.") from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}".encode(), 0)
        _HANDLES.add(handle)
        self.release = weakref.finalize(self, _release, handle, self.path, os.getpid())
        _remove_abandoned_files(self.path.parent, "*" if folder else glob.escape(path.name))

    def _acquire(self, output: Path) -> int:
        """Return the handle of the locked file."""
        while True:
            # A link in a shared folder would let this process empty a file of its user.
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                os.close(handle)
                raise OutputError(
                    f"{self.path} is a pipe or a device, not a lock file. Remove it, or choose another output."
                )
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._refuse(output, handle)
            except OSError:  # a file system without locks
                process, host = _owner(handle)
                if process and (host != socket.gethostname() or process_runs(int(process))):
                    self._refuse(output, handle, f" If that process has ended, remove {self.path}.")
            if _is_same_file(handle, self.path):
                return handle
            os.close(handle)  # its owner removed the file between the two calls

    def _refuse(self, output: Path, handle: int, hint: str = "") -> NoReturn:
        end = time.monotonic() + _OWNER_SECONDS
        while not (owner := _owner(handle))[0] and time.monotonic() < end:
            time.sleep(0.01)  # it has just taken the lock, and its id is not there yet
        process, host = owner
        os.close(handle)
        where = f" on {host}" if host and host != socket.gethostname() else ""
        raise BusyError(
            f"Another process (id {process or 'unknown'}{where}) is writing to {output}. Wait until it ends, or choose "
            f"another output.{hint}"
        )

    def __enter__(self) -> OutputLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def check_output(output: PathLike) -> None:
    """Raise if a file cannot be written, so that a command says so before it loads a model.

    Raises:
        BusyError, OutputError: as `OutputLock`.
    """
    OutputLock(output).release()


def check_new_folder(target: PathLike) -> None:
    """Raise if `atomic_directory` could not write a new folder, so that a command says so before it loads a model.

    Raises:
        OutputError: as `atomic_directory`.
    """
    given, path = Path(target), _resolved(target)
    _require_absent_or_empty(given)
    (_make_temporary(given, path)).rmdir()


def _require_kind(output: Path, folder: bool) -> None:
    """Raise an OutputError if an output exists and is not a file, or not a folder."""
    try:
        mode = output.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror}. Choose another output.") from error
    except ValueError:  # a NUL character
        raise OutputError(f"{printable(str(output))} is no name of a file. Choose another output.") from None
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        allowed = "a folder" if folder else "a regular file"
        raise OutputError(f"{output} exists and is not {allowed}. Choose another output.")


def _owner(handle: int) -> tuple[str, str]:
    """Return the process id ("" if none) and the host name in a lock file."""
    process, _, host = os.pread(handle, 300, 0).decode(errors="replace").partition(" ")
    return (process if process.isascii() and process.isdigit() else ""), host


#: Seconds in which the owner of a lock writes its id into it.
_OWNER_SECONDS = 0.5

#: File handles of the locks of this process; a forked child closes its copies.
_HANDLES: set[int] = set()


def _close_inherited() -> None:
    for handle in _HANDLES:
        os.close(handle)
    _HANDLES.clear()


os.register_at_fork(after_in_child=_close_inherited)


def _release(handle: int, path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has a copy of this object, not of the lock
        path.unlink(missing_ok=True)
        _HANDLES.discard(handle)
        os.close(handle)


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def write_text(path: PathLike, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically."""
    with atomic(path) as temporary:
        # Half of a surrogate pair cannot be UTF-8; written as \\ud800 it stays valid JSON and harmless elsewhere.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: PathLike, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` as UTF-8 JSON to `path`, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def write_jsonl(path: PathLike, rows: Iterable[Any]) -> None:
    """Write `rows` as JSON Lines to `path` atomically; rows are consumed one by one."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Raises:
        DataError: if the file is missing or is not JSON.
    """
    file = existing_file(path)
    try:
        return parse_json(file.read_text(encoding="utf-8-sig"))
    except BAD_JSON as error:
        raise DataError(f"{file} is not a valid UTF-8 JSON file: {json_fault(error)}.") from error


def iter_jsonl(path: PathLike, on_broken: Callable[[int], None] | None = None) -> Iterator[Any]:
    """Yield the values of a JSON Lines file; blank lines are skipped.

    Args:
        path: the file.
        on_broken: called with the number of each line that is not JSON, which is skipped; without it such a line is an error.

    Raises:
        DataError: if the file is missing, or with the line number where a line is not JSON.
    """
    file = existing_file(path)
    with file.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                value = parse_json(line.removeprefix(b"\xef\xbb\xbf").decode())
            except BAD_JSON as error:
                if on_broken is None:
                    raise DataError(f"{file}, line {number}: not valid UTF-8 JSON: {json_fault(error)}.") from error
                on_broken(number)
                continue
            yield value


def existing_file(path: PathLike, what: str = "file") -> Path:
    """Return `path` as a Path, or raise a DataError if there is no file."""
    if not _answer(path, what, Path.is_file):
        state = "is a folder, not a file" if _answer(path, what, Path.is_dir) else "does not exist"
        raise DataError(f"The {what} {path} {state}.")
    return Path(path)


def existing(path: PathLike, what: str = "file or folder") -> Path:
    """Return `path` as a Path, or raise a DataError if it does not exist."""
    if not _answer(path, what, Path.exists):
        raise DataError(f"The {what} {path} does not exist.")
    return Path(path)


def existing_folder(path: PathLike, what: str = "folder") -> Path:
    """Return `path` as a Path, or raise a DataError if there is no folder."""
    if not _answer(path, what, Path.is_dir):
        state = "is a file, not a folder" if _answer(path, what, Path.is_file) else "does not exist"
        raise DataError(f"The {what} {path} {state}.")
    return Path(path)


def _answer(path: PathLike, what: str, question: Callable[[Path], bool]) -> bool:
    """Ask the file system about a path; a name that it cannot take (too long, a NUL character) is a DataError."""
    path = require_path(path, what)
    try:
        if "\0" in str(path):
            raise ValueError("it holds a NUL character")
        return question(Path(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"The {what} path {shown(str(path), 200)} cannot be used: {reason}.") from error


def resolve_under(root: PathLike, relative: PathLike, what: str = "file", *, links: bool = False) -> Path:
    """Return `root / relative` after checking that it exists and stays below `root`.

    An absolute `relative` is allowed only if it is below `root`. Symbolic links are followed before the check; with `links`
    a link below `root` may lead anywhere, as in the cache of a model hub or a folder on another disk.

    Raises:
        DataError: if the path leaves `root` or does not exist.
    """
    name = str(relative)
    if name.startswith("data:"):
        raise DataError(f"The {what} path is a {shown(name)[1:-1]}. Save the {what} as a file and name that file.")
    try:
        base = Path(root).resolve()
        path = (base / relative).resolve()
        inside = path.is_relative_to(base) or (links and Path(os.path.normpath(base / relative)).is_relative_to(base))
        found = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL character, a loop of symbolic links
        reason = getattr(error, "strerror", None) or str(error).split(":")[0]
        raise DataError(f"The {what} path {shown(name, 200)} cannot be used: {reason}.") from error
    if not inside:
        raise DataError(f"The {what} path {shown(name, 200)} leaves the root {base}. Use a path below that root.")
    if not found:
        raise DataError(f"The {what} {shown(name, 200)} does not exist below {base}.")
    return path


def sha256(path: PathLike) -> str:
    """Return the SHA-256 digest of a file as 64 hex digits; the file is read in blocks."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
