"""A server in a thread of the test process, and what its clients send."""

from __future__ import annotations

import base64
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn

from medmvl import Predictor
from medmvl.serving.server import readers
from medmvl.serving.server.run import make_server, serving_page
from medmvl.serving.server.service import Service
from medmvl.serving.server.settings import Limits, ServerSettings
from waiting import PATIENCE, wait_for

# The tests of training fork their processes from the same server.
readers.PRELOAD = ["medmvl.serving.server.reader", "medmvl.training.run"]

# By itself, httpx gives a reply five seconds to begin.
get, post, put = (partial(method, timeout=PATIENCE) for method in (httpx.get, httpx.post, httpx.put))


class Live:
    """A running server: its service, its address, and clients."""

    def __init__(self, service: Service, server: Any, address: str) -> None:
        self.service, self.server, self.address = service, server, address

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=PATIENCE)

    def wait_until_idle(self) -> None:
        scheduler, guard = self.service.scheduler, self.service.guard
        wait_for(lambda: not (scheduler.running or scheduler.waiting or guard.open), what="no request is open")


@contextmanager
def live(folder: Path, limits: Limits | None = None, **settings: Any) -> Iterator[Live]:
    """Serve a checkpoint folder on a free port of the loopback interface."""
    predictor = Predictor.from_pretrained(folder)
    service = Service.start(predictor, ServerSettings("tiny", port=0, **{"readers": 1, **settings}), limits or Limits())
    page = serving_page(service, predictor, folder) if service.settings.page else None
    server = make_server(uvicorn, service, page=page)
    try:
        with in_thread(server) as port:
            yield Live(service, server, f"http://127.0.0.1:{port}")
    finally:
        service.close()


@contextmanager
def in_thread(server: uvicorn.Server) -> Iterator[int]:
    """Run a uvicorn server in a thread; gives its port."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started or not thread.is_alive(), what="the server starts")
    assert server.started, "the server has ended"
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


def data_uri(data: bytes, kind: str = "application/octet-stream") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(kind: str, source: Path | bytes | str, **more: Any) -> dict[str, Any]:
    """Return a content part: of a file, of bytes, or of a URL."""
    data = source.read_bytes() if isinstance(source, Path) else source
    url = data if isinstance(data, str) else data_uri(data)
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url, **more}}


def user(text: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of one question."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def zipped(folder: Path) -> bytes:
    """Return a zip archive of a folder's files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.name)
    return stream.getvalue()
