"""Running the server: address, TLS, signals, draining."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

from medmvl.errors import require
from medmvl.inference import Predictor
from medmvl.serving.page.app import Page
from medmvl.serving.page.run import build_page, page_model
from medmvl.serving.page.settings import PageSettings
from medmvl.serving.protection import temporary_home
from medmvl.serving.server.app import build_app
from medmvl.serving.server.scheduler import Scheduler
from medmvl.serving.server.service import Service, warm_up
from medmvl.serving.server.settings import Limits, ServerSettings

_PREFIX = "medmvl-serve-"


def run_server(
    folder: Path,
    settings: ServerSettings,
    limits: Limits,
    on_ready: Callable[[str], None] | None = None,
    **loading: Any,
) -> None:
    """Serve a checkpoint folder until SIGTERM or Ctrl-C; requests that are open then are answered first.

    Args:
        folder: checkpoint folder.
        settings, limits: see there.
        on_ready: called with the address when the server answers.
        loading: arguments of `Predictor.from_pretrained`.
    """
    uvicorn = require("uvicorn", "serve")
    # The sockets of multiprocessing: their paths may have 107 bytes, too few for a folder in a folder.
    get_temp_dir()
    with temporary_home(_PREFIX):
        predictor = Predictor.from_pretrained(folder, **loading)
        warm_up(predictor)
        service = Service.start(predictor, settings, limits)
        try:
            service.readers.wait()
            page = serving_page(service, predictor, folder) if settings.page else None
            make_server(uvicorn, service, on_ready, page).run()
        finally:
            service.close()


def serving_page(service: Service, predictor: Predictor, folder: Path | None) -> Page:
    """Return the web page of a server. It shares decoder and readers; the API keys are its passwords.

    Args:
        predictor: the model of the service.
        folder: its checkpoint folder, for the questions stored there.
    """
    own = service.settings
    settings = PageSettings(tuple(own.keys), upload_mib=service.limits.bodies_mib, abstain_below=own.abstain_below)
    assert isinstance(service.scheduler, Scheduler)  # settings exclude a page with a backend
    model = page_model(service.settings.name, predictor, service.scheduler, folder)
    return build_page([model], service.readers, settings)


def make_server(
    uvicorn: Any, service: Service, on_ready: Callable[[str], None] | None = None, page: Page | None = None
) -> Any:
    """Return the uvicorn server of a service, not yet running.

    Args:
        uvicorn: the module.
        on_ready: called with the address when it answers.
        page: the web page, at `/`; None: without.
    """
    settings, limits = service.settings, service.limits

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started and on_ready is not None:
                port = self.servers[0].sockets[0].getsockname()[1]
                on_ready(f"{'https' if settings.tls else 'http'}://{settings.host}:{port}")

        def handle_exit(self, sig: int, frame: Any) -> None:
            # uvicorn's own handler raises the signal again in the end, which would be an exit status of failure.
            self.force_exit = service.draining  # a second signal does not wait
            service.draining = self.should_exit = True

    certificate, key = settings.tls or (None, None)
    return Server(
        uvicorn.Config(
            build_app(service, page),
            host=settings.host,
            port=settings.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=True,
            ws="none",
            timeout_keep_alive=75,  # a client on a busy machine may send into a connection that was just closed
            timeout_graceful_shutdown=limits.drain_seconds,
            limit_concurrency=4 * limits.waiting,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
    )
