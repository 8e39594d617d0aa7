"""Object stores for tests: a folder behind fsspec's s3://, and a real S3 protocol server (moto) on this machine."""

from __future__ import annotations

import http.server
import os
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

import medmvl.remote


class FolderStore(LocalFileSystem):
    """`s3://BUCKET/KEY` in a folder; counts the requests that carry data."""

    protocol = "s3"
    cachable = False
    folder: ClassVar[Path] = Path()
    reads: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        text = str(path).removeprefix("s3://")
        return super()._strip_protocol(text if text.startswith(str(cls.folder)) else str(cls.folder / text))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        FolderStore.reads.append(path)
        return super().cat_file(path, start=start, end=end, **kwargs)

    def get_file(self, path: str, local: str, **kwargs: Any) -> None:
        FolderStore.reads.append(path)
        super().get_file(path, local, **kwargs)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        Path(self._strip_protocol(path)).parent.mkdir(parents=True, exist_ok=True)
        super().pipe_file(path, value, mode=mode, **kwargs)


@contextmanager
def folder_store(folder: Path, cache: Path) -> Iterator[type[FolderStore]]:
    """Serve a folder as s3:// and put local copies into another one."""
    known = dict(fsspec.registry)
    FolderStore.folder, FolderStore.reads = folder.resolve(), []
    fsspec.register_implementation("s3", FolderStore, clobber=True)
    medmvl.remote._facts.cache_clear()
    before = os.environ.get("MEDMVL_CACHE")
    os.environ["MEDMVL_CACHE"] = str(cache)
    try:
        yield FolderStore
    finally:
        medmvl.remote._facts.cache_clear()
        os.environ.pop("MEDMVL_CACHE") if before is None else os.environ.update(MEDMVL_CACHE=before)
        if "s3" in known:
            fsspec.register_implementation("s3", known["s3"], clobber=True)
        else:
            fsspec.registry.target.pop("s3", None) if hasattr(fsspec.registry, "target") else None


def environment_of(port: int) -> dict[str, str]:
    """Return the variables by which S3 clients find a server on this machine."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


class _FolderHandler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; counts the requests for data."""

    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


class _RangeHandler(_FolderHandler):
    """Also answers requests for a part of a file, which Python's own server does not."""

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            super().do_GET()
            return
        self.requests.append(self.path)
        data = Path(self.translate_path(self.path)).read_bytes()[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def web_store(
    folder: Path, *, ranges: bool = True, tls: tuple[Path, Path] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder over HTTP, or HTTPS with a certificate and key; yields the URL and the list of requests for data."""
    handler = type("Handler", (_RangeHandler if ranges else _FolderHandler,), {"requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    medmvl.remote._facts.cache_clear()
    try:
        name = "http://127.0.0.1" if tls is None else "https://localhost"
        yield f"{name}:{server.server_address[1]}", handler.requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        medmvl.remote._facts.cache_clear()
