"""A page in a thread of the test process, and a visitor of it without a browser."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from medmvl import Predictor
from medmvl.inference.decoding import Row
from medmvl.serving.page.app import Page
from medmvl.serving.page.run import _server, build_page, page_model
from medmvl.serving.page.settings import PageSettings
from medmvl.serving.server import readers
from medmvl.serving.server.scheduler import Scheduler
from medmvl.serving.server.settings import Limits
from waiting import PATIENCE, wait_for

# The tests of training fork their processes from the same server.
readers.PRELOAD = ["medmvl.serving.server.reader", "medmvl.training.run"]


@contextmanager
def live_page(
    *folders: Path, settings: PageSettings | None = None, limits: Limits | None = None
) -> Iterator[tuple[Page, str]]:
    """Serve the page of checkpoint folders on a free port; yields the page and its address."""
    limits = limits or Limits()
    predictors = [Predictor.from_pretrained(folder) for folder in folders]
    models = [
        page_model(f"model-{number}", predictor, Scheduler(predictor.decoder(), limits.batch), folder)
        for number, (folder, predictor) in enumerate(zip(folders, predictors, strict=True))
    ]
    pool = readers.ReaderPool(predictors[0].processor, limits, 1, [predictor.processor for predictor in predictors[1:]])
    pool.wait()
    page = build_page(models, pool, settings or PageSettings())
    addresses: list[str] = []
    server = _server(uvicorn, page, "127.0.0.1", 0, (), addresses.append)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: addresses or not thread.is_alive(), what="the page is served")
    assert addresses, "the server has ended"
    try:
        yield page, addresses[0]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        for model in models:
            model.scheduler.close()
        pool.close()


class Visitor:
    """One visitor with a session."""

    def __init__(self, address: str, password: str | None = None) -> None:
        self.http = httpx.Client(base_url=f"{address}/page/api/", timeout=PATIENCE)
        begun = self.http.post("session", json={"password": password})
        begun.raise_for_status()
        self.facts = begun.json()
        self.http.headers["x-session"] = self.facts["session"]
        self.version = self.facts["version"]

    def post(self, name: str, **body: Any) -> httpx.Response:
        found = self.http.post(name, json=body)
        self.version = found.json().get("version", self.version) if found.content[:1] == b"{" else self.version
        return found

    def send(self, paths: Sequence[Path], plain_names: bool = False, **more: Any) -> httpx.Response:
        """Send files as the page does: clear, files, open; with `plain_names` not under their own names."""
        if not more.get("add"):
            self.post("clear")
        for number, path in enumerate(paths):
            name = f"{number}.dcm" if plain_names else path.name.encode("ascii", "replace").decode()
            self.http.put("file", content=path.read_bytes(), headers={"x-name": name}).raise_for_status()
        return self.post("open", **more)

    def ask(self, text: str, **more: Any) -> list[dict[str, Any]]:
        """Ask and return the events."""
        found = self.http.post("ask", json={"text": text, "version": self.version, **more})
        return [json.loads(line) for line in found.text.splitlines()]


class Talkative:
    """Lets a random model write words until its answers are as long as they may be.

    Args:
        word: what it writes.
        pause: seconds that a step takes longer.
        begin: waited for before the first step.
    """

    def __init__(
        self, page: Page, word: str = " nodule", pause: float = 0.005, begin: Callable[[], bool] = lambda: True
    ) -> None:
        self.model = page.asking.models[0].predictor.model
        tokenizer = page.asking.models[0].predictor.processor.tokenizer
        self.token = tokenizer(word, add_special_tokens=False)["input_ids"][0]
        self.steps, self.pause, self.begin = 0, pause, begin

    def __enter__(self) -> Talkative:
        forward = self.model.forward

        def counted(*arguments: Any, **options: Any) -> Any:
            if not self.steps:
                wait_for(self.begin, what="the answer may begin")
            self.steps += 1
            output = forward(*arguments, **options)
            output.logits[..., self.token] += (
                1e4  # the random model says nothing but special tokens, which are not shown
            )
            time.sleep(self.pause)
            return output

        self.model.forward = counted
        return self

    def __exit__(self, *_: Any) -> None:
        del self.model.forward


def rows_of(page: Page) -> list[Row]:
    """Return the rows that the page's first model decodes now."""
    return list(page.asking.models[0].scheduler.decoder.rows)
