"""Running the page alone (`medmvl demo`), and adding it to the server (`medmvl serve`)."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

from medmvl import __version__
from medmvl.errors import RecipeError, require
from medmvl.files import check_output
from medmvl.inference import Predictor
from medmvl.processing.stored_prompts import StoredPrompts, read_prompts
from medmvl.serving.model_names import model_names
from medmvl.serving.page.app import Page
from medmvl.serving.page.asking import Asking
from medmvl.serving.page.models import PageModel
from medmvl.serving.page.sessions import Sessions
from medmvl.serving.page.settings import LANGUAGES, PageSettings
from medmvl.serving.protection import host_check, temporary_home
from medmvl.serving.server.readers import ReaderPool
from medmvl.serving.server.scheduler import Scheduler
from medmvl.serving.server.settings import Limits, is_loopback

_PREFIX = "medmvl-page-"


def build_page(models: Sequence[PageModel], readers: ReaderPool, settings: PageSettings) -> Page:
    """Return the page of one model, or of two that are compared."""
    sessions = Sessions(settings, Path(tempfile.gettempdir()))
    return Page(Asking(models, settings), readers, sessions, settings, _facts(models))


def _facts(models: Sequence[PageModel]) -> dict[str, Any]:
    """Return what the page shows of the models."""
    first = models[0]
    towers = sorted(set.intersection(*(set(model.predictor.model.towers) for model in models)))
    return {
        "model": first.name,
        "models": len(models),
        "version": 0,
        "medmvl": __version__,
        "towers": towers,
        "languages": list(LANGUAGES),
        "tasks": [
            {"task": task.task, "modality": task.modality, "prompts": [asdict(one) for one in task.prompts]}
            for task in first.prompts.tasks
            if task.modality in towers
        ],
        "several": {"image": first.prompts.images, "volume": first.prompts.volumes, "together": first.prompts.together},
        # Each question is asked on its own unless conversations are known to be what the models have learned.
        "dialogs": all(model.prompts.dialogs is True for model in models),
        "synthetic": any(model.prompts.synthetic for model in models),
    }


def run_page(
    folder: Path,
    *,
    compare: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    allowed_hosts: Sequence[str] = (),
    settings: PageSettings | None = None,
    on_ready: Callable[[str, str | None], None] | None = None,
    **loading: Any,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM, then remove all that visitors sent.

    Args:
        folder: checkpoint folder.
        compare: another checkpoint folder, whose answers are shown beside.
        host, port: address to listen on; on another one than the loopback, a password is made up if none is set.
        allowed_hosts: further names under which browsers reach the page, such as that of a reverse proxy.
        settings: passwords and limits.
        on_ready: called with the address and the password that was made up, when the page answers.
        loading: arguments of `Predictor.from_pretrained`.

    Raises:
        RecipeError: if the file of preferences cannot be written, or answers shall be withheld below a stored threshold and
            there is none.
        MissingExtraError: if a package of the extra `demo` is not installed.
    """
    uvicorn, settings = require("uvicorn", "demo"), settings or PageSettings()
    require("starlette", "demo")
    if settings.preferences is not None:
        check_output(settings.preferences)
    if compare is not None and compare.resolve() == folder.resolve():
        raise RecipeError("Both models are the same folder. Give another one to compare with.")
    made_up = None
    if not settings.passwords and not is_loopback(host):
        made_up = secrets.token_urlsafe(12)
        settings = replace(settings, passwords=(made_up,))
    get_temp_dir()  # the sockets of multiprocessing, whose paths must be short
    with temporary_home(_PREFIX), contextlib.ExitStack() as closing:
        folders = [path for path in (folder, compare) if path is not None]
        models = [_load(name, path, loading) for name, path in zip(model_names(folders), folders, strict=True)]
        for model in models:
            closing.callback(model.scheduler.close)
        readers = ReaderPool(
            models[0].predictor.processor, Limits(), 2, [model.predictor.processor for model in models[1:]]
        )
        closing.callback(readers.close)
        readers.wait()
        page = build_page(models, readers, settings)
        closing.callback(page.sessions.end_all)
        _server(uvicorn, page, host, port, allowed_hosts, lambda address: on_ready and on_ready(address, made_up)).run()


def _load(name: str, folder: Path, loading: dict[str, Any]) -> PageModel:
    predictor = Predictor.from_pretrained(folder, **loading)
    return page_model(name, predictor, Scheduler(predictor.decoder(), Limits().batch), folder)


def page_model(name: str, predictor: Predictor, scheduler: Scheduler, folder: Path | None) -> PageModel:
    """Return a model of the page with the questions stored in its checkpoint folder."""
    prompts = read_prompts(folder) if folder is not None else StoredPrompts()
    return PageModel(name, predictor, scheduler, prompts)


def _server(
    uvicorn: Any, page: Page, host: str, port: int, allowed_hosts: Sequence[str], on_ready: Callable[[str], Any]
) -> Any:
    applications = require("starlette.applications", "demo")
    app = applications.Starlette(
        routes=page.routes(), middleware=[host_check(host, allowed_hosts)], lifespan=page.lifespan
    )

    ending = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_ready(f"http://{host}:{self.servers[0].sockets[0].getsockname()[1]}")

        def handle_exit(self, sig: int, frame: Any) -> None:
            # uvicorn's own handler raises the signal again in the end, which would be an exit status of failure.
            self.force_exit = ending.is_set()  # a second signal does not wait
            self.should_exit = True
            ending.set()

    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=2,
        )
    )
