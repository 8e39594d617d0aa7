"""Protection of the page's and the server's users: temporary files that do not stay, checked Host headers, messages without paths."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from medmvl.errors import require
from medmvl.files import process_runs


@contextmanager
def temporary_home(prefix: str) -> Iterator[Path]:
    """Keep all temporary files of the process in one folder, and remove it at the end, also on SIGTERM.

    The folders of processes that were killed are removed as well.

    Args:
        prefix: of the folder's name, which tells programs apart.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        process = left.name.removeprefix(prefix).partition("-")[0]
        if process.isascii() and process.isdigit() and not process_runs(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-"))  # readable by its owner only
    before, handler = tempfile.tempdir, signal.signal(signal.SIGTERM, _exit)
    tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        signal.signal(signal.SIGTERM, handler)
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


def _exit(*_: Any) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def host_check(host: str, allowed: Sequence[str] = (), extra: str = "demo") -> Any:
    """Return the middleware that refuses requests whose Host header names another machine.

    A web page of a stranger can point its own name at this address (DNS rebinding); its requests carry that name.

    Args:
        host: the address that the page listens on; all names of this machine are allowed if it listens on all addresses.
        allowed: further names.
        extra: of medmvl, that holds the package.
    """
    middleware = require("starlette.middleware", extra)
    trusted = require("starlette.middleware.trustedhost", extra)
    names = {"localhost", "127.0.0.1", host, *allowed}
    if host in ("0.0.0.0", "::"):
        names |= {socket.gethostname(), socket.getfqdn(), *_own_addresses()}
    return middleware.Middleware(trusted.TrustedHostMiddleware, allowed_hosts=sorted(names), www_redirect=False)


def _own_addresses() -> set[str]:
    try:
        return set(socket.gethostbyname_ex(socket.gethostname())[2])
    except OSError:
        return set()


def without_paths(message: str) -> str:
    """Return a message with each absolute path cut to its last part."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/'\":,;]+/)+([^\s/'\":,;]*)", r"\1", message)
