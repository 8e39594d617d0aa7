"""Files of object stores (s3://, gs://, https://), read through a bounded local cache.

Only a root that the user gives (in a recipe, on the command line, as an argument) may be a URL. A record names a path below its root;
`join` refuses anything else, and the readers fetch nothing but a `RemotePath`. So no record can direct a read to another host.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import posixpath
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from medmvl.errors import DataError, MissingExtraError, require_path, shown
from medmvl.files import PathLike, private_folder

#: Schemes of roots. Plain http is allowed for this machine only: elsewhere pixels would travel unencrypted.
SCHEMES = ("s3", "gs", "https")
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL_HTTP = re.compile(r"^http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/|$)")

#: Environment variable with the limit of the local cache in GB, and its default.
LIMIT_VARIABLE, DEFAULT_GB = "MEDMVL_OBJECT_CACHE_GB", 20.0
#: What was used in the last seconds is never removed, since its reader may not have opened it yet.
GRACE_SECONDS = 60.0
_KNOWN = "png|jpe?g|tiff?|bmp|webp|dcm|dicom|np[yz]|nii|gz|mha|nrrd|jsonl?|parquet|csv|tar|safetensors"
#: Keys under which stores state the version of an object, best first.
_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "Content-MD5",
    "LastModified",
    "Last-Modified",
    "updated",
    "mtime",
    "created",
)
_CHECK_EVERY = 32  # files that a process fetches between two checks of the limit


class RemotePath(str):
    """The URL of a file or folder below a root that the user gave."""


def is_url(path: object) -> bool:
    """Whether a path is written as a URL."""
    return isinstance(path, str) and _URL.match(path) is not None


def as_root(root: PathLike, what: str = "folder") -> Path | RemotePath:
    """Return a root given by the user as a folder, or as a URL of an object store.

    Args:
        root: as given.
        what: its name in messages.

    Raises:
        DataError: for another type than a path, a URL with an unknown scheme, or with credentials in it.
    """
    if isinstance(root, RemotePath):
        return root
    if not is_url(root):
        return Path(require_path(root, what))
    url = str(root).rstrip("/")
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES and not _LOCAL_HTTP.match(url):
        raise DataError(
            f"The root {shown(url)} is not of a known kind: {', '.join(f'{name}://' for name in SCHEMES)}, or a folder."
        )
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise DataError(
            "A root must not hold a user name or password. Give credentials as the object store's tools expect them."
        )
    return RemotePath(url)


def join(root: RemotePath, relative: PathLike, what: str = "file") -> RemotePath:
    """Return the URL of a path below a root, without asking whether it exists.

    Raises:
        DataError: if the path is absolute, is a URL itself, or leaves the root.
    """
    name = str(relative)
    parts = PurePosixPath(name).parts
    foreign = is_url(name) or name.startswith(("/", "data:")) or any(mark in name for mark in ("?", "#", "\0", "\\"))
    if foreign or ".." in parts or not parts:
        raise DataError(
            f"The {what} path {shown(name, 200)} is not a path below the root {root}. Records name relative paths."
        )
    return unchecked_join(root, name)


def unchecked_join(root: RemotePath, relative: str) -> RemotePath:
    """Return what `join` returns; of a path that `join` refuses, a URL that must not be read."""
    written = str(PurePosixPath(relative))
    return RemotePath(f"{root}/{written.replace('%', '%25') if _is_web(root) else written}")


def below(path: RemotePath, root: PathLike) -> str | None:
    """Return the path of a URL below a root, as a record names it, or None if it is elsewhere."""
    prefix = f"{root}".rstrip("/") + "/"
    if not path.startswith(prefix):
        return None
    return path[len(prefix) :].replace("%25", "%") if _is_web(path) else path[len(prefix) :]


def _is_web(url: str) -> bool:
    """Whether a URL is one of a web server, in which a percent sign of a file's name is written as %25."""
    return url.startswith(("http://", "https://"))


def parent(url: RemotePath) -> RemotePath:
    """Return the folder of a URL."""
    return RemotePath(url.rpartition("/")[0])


def moved(url: RemotePath, relative: str) -> RemotePath:
    """Return a folder named relative to another one; `..` may not leave the bucket or host."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    target = posixpath.normpath(posixpath.join("/", path, relative))
    return RemotePath(f"{scheme}://{host}{target}".rstrip("/"))


def object_cache() -> Path:
    """Return the folder of local copies: `objects` in `$MEDMVL_CACHE` or in `medmvl` under the user's cache folder."""
    named, base = os.environ.get("MEDMVL_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path(base if base else Path.home() / ".cache") / "medmvl") / "objects"


def cache_limit() -> int:
    """Return the most bytes of local copies.

    Raises:
        DataError: if the variable is not a number above 0.
    """
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise DataError(f"{LIMIT_VARIABLE} must be a number of GB above 0, not {text!r}.")
    return int(limit * 10**9)


def local_copy(url: RemotePath, *, keep: bool = False) -> Path:
    """Return the local copy of a file, or of all files below a folder, and fetch it first if it is not there.

    The copy is named by a hash of URL and content's version, and is readable by its user only. The store is asked once per process
    whether the original has changed.

    Args:
        url: below a root of the user.
        keep: never remove the copy to make room, and give it the original's name; for files of records.

    Raises:
        DataError: if there is no such file, or the store cannot be read.
        MissingExtraError: if the package for this kind of store is not installed.
    """
    facts = _facts(url)
    name = _digest(f"{url}|{json.dumps(facts, sort_keys=True)}")
    name += f"/{url.rpartition('/')[2]}" if keep else _suffix(url)
    return _present(name, keep, lambda temporary: _download(url, facts, temporary))


def local_range(url: RemotePath, offset: int, size: int, version: str) -> Path:
    """Return a local copy of `size` bytes of a file from `offset`.

    Args:
        url: below a root of the user.
        offset, size: in bytes.
        version: changes with the file's content, so that a copy of an earlier content is not used.

    Raises:
        DataError: if the file is shorter or cannot be read.
    """

    def fetch(temporary: Path) -> None:
        with _readable(url):
            data = _filesystem(url).cat_file(str(url), start=offset, end=offset + size)
        if len(data) > size:  # a web server that knows no ranges sends the whole file
            data = data[offset : offset + size]
        if len(data) != size:
            raise DataError(f"{url} ends before byte {offset + size}. Upload it again.")
        temporary.write_bytes(data)

    return _present(_range_name(url, offset, size, version), False, fetch)


def range_copy(url: RemotePath, offset: int, size: int, version: str) -> Path | None:
    """Return the copy that `local_range` would return, or None if it has not been fetched yet."""
    path = object_cache() / "bounded" / _range_name(url, offset, size, version)
    return path if _touch(path) else None


def read_bytes(url: RemotePath) -> bytes:
    """Return the content of a small file, which is not kept.

    Raises:
        DataError: if there is no such file, or the store cannot be read.
    """
    with _readable(url):
        return bytes(_filesystem(url).cat_file(str(url)))


def write_bytes(url: RemotePath, data: bytes) -> None:
    """Write an object; a reader sees the old or the new one.

    Raises:
        DataError: if the store refuses.
    """
    with _readable(url, "written"):
        _filesystem(url).pipe_file(str(url), data)


def exists(url: RemotePath) -> bool:
    """Whether there is an object of this name, or anything below it."""
    with _readable(url):
        return bool(_filesystem(url).exists(str(url)))


def content_state(url: RemotePath) -> list[Any]:
    """Return a JSON value that changes with the content of a file or of the files below a folder."""
    return [str(url), _facts(url)]


# --- the store --------------------------------------------------------------------------------------------------------


def _filesystem(url: str) -> Any:
    """Return fsspec's file system of a URL; fsspec keeps one per process and thread."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)[0]
    except ImportError as error:
        raise MissingExtraError(
            f"{url.partition('://')[0]}:// needs a package that is not installed. Install the extra 'objects' of medmvl "
            "(pip install 'medmvl[objects]')."
        ) from error


@contextmanager
def _readable(url: str, verb: str = "read") -> Iterator[None]:
    """Turn the errors of any store into one line; they come in many types."""
    try:
        yield
    except (DataError, MissingExtraError):
        raise
    except FileNotFoundError as error:
        raise DataError(f"{url} does not exist, or may not be read with these credentials.") from error
    except Exception as error:  # botocore, aiohttp and google have types of their own
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise DataError(f"{url} cannot be {verb}: {reason}") from error


@lru_cache(maxsize=1 << 17)
def _facts(url: RemotePath) -> dict[str, list[Any]]:
    """Return relative name -> [size, version] of the file ("" is its name), or of all files below the folder."""
    with _readable(url):
        system = _filesystem(url)
        try:
            info = system.info(str(url))
        except FileNotFoundError as error:
            cause = error.__cause__
            if (
                isinstance(cause, Exception)
                and not isinstance(cause, FileNotFoundError)
                and not hasattr(cause, "status")
            ):
                raise cause from error  # fsspec says so of a server that does not answer, too
            info = {"type": "directory"}
        is_page = str(info.get("mimetype", "")).startswith("text/html")  # a web server's list of a folder
        if info.get("type") != "directory" and not is_page:
            return {"": _version(info)}
        found = system.find(str(url), detail=True)
        base = system._strip_protocol(str(url)).rstrip("/") + "/"
        files = {name.removeprefix(base): entry for name, entry in sorted(found.items()) if name.startswith(base)}
        if not files and is_page:
            raise DataError(f"{url} is a web page, not a file. Check the address, and whether it asks for a login.")
        if not files:
            raise FileNotFoundError(url)
        # The list of a web server states neither sizes nor times.
        return {name: _version(system.info(f"{url}/{name}") if is_page else entry) for name, entry in files.items()}


def _version(info: dict[str, Any]) -> list[Any]:
    """Return size and version of an object: its ETag, else its time."""
    named = (info.get(key) for key in _VERSION_KEYS)
    return [int(info.get("size") or 0), next((str(value).strip('"') for value in named if value), "")]


def _download(url: RemotePath, facts: dict[str, list[Any]], temporary: Path) -> None:
    system = _filesystem(url)
    with _readable(url):
        for name, (size, _) in facts.items():
            target = temporary / name if name else temporary
            if name.startswith("/") or "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts:
                raise DataError(f"{url} holds a file {shown(name)} that leaves it.")
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{url}/{name}" if name else str(url), str(target))
            if size and target.stat().st_size != size:
                raise DataError(f"{url} was cut off: {target.stat().st_size} of {size} bytes came. Try again.")


# --- the local copies -------------------------------------------------------------------------------------------------

_fetched = 0


def _present(name: str, keep: bool, fetch: Callable[[Path], None]) -> Path:
    """Return the file or folder of a name in the cache, fetched once even if several processes want it."""
    global _fetched
    folder = private_folder(object_cache() / ("kept" if keep else "bounded"))
    path = folder / name
    if not _touch(path):
        with _lock(folder / f".{name[:2]}.lock"):
            if not _touch(path):
                _fetch(path, fetch)
        _fetched += 1
        if not keep and _fetched % _CHECK_EVERY == 1:
            make_room(cache_limit())
    return path


def _touch(path: Path) -> bool:
    """Note that a copy is used now; False if it is not there. The time of its content stays."""
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def _fetch(path: Path, fetch: Callable[[Path], None]) -> None:
    private_folder(path.parent)
    temporary = path.with_name(f".{os.getpid()}.{time.time_ns()}{path.name}")
    try:
        fetch(temporary)
        temporary.chmod(0o700 if temporary.is_dir() else 0o600)
        os.utime(temporary, ns=(time.time_ns(), 0))  # a time of its own would make an equal copy look changed
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def make_room(limit: int) -> None:
    """Remove the copies that were used longest ago until at most `limit` bytes are left.

    Copies used in the last `GRACE_SECONDS` stay, so the limit may be exceeded by what was read in that time.
    """
    folder = object_cache() / "bounded"
    now, found, total = time.time(), [], 0
    for path in folder.iterdir():
        if path.name.endswith(".lock"):
            continue
        try:
            size = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
            used = path.stat().st_atime
        except FileNotFoundError:  # removed by another process
            continue
        total += size
        found.append((used, size, path))
    for used, size, path in sorted(found):
        if total <= limit or now - used < GRACE_SECONDS:
            break
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        total -= size


def _range_name(url: str, offset: int, size: int, version: str) -> str:
    return _digest(f"{url}|{version}|{offset}|{size}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _suffix(url: str) -> str:
    """Return the suffix of a file name if readers know it (".nii.gz"); other parts of a name may be a patient's."""
    found = re.search(rf"(\.nii|\.json|\.csv)?\.({_KNOWN})$", url.lower())
    return found.group() if found else ""
