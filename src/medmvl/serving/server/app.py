"""Routes of the server."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from medmvl import __version__
from medmvl.errors import require
from medmvl.serving.page.app import Page
from medmvl.serving.protection import host_check
from medmvl.serving.server.exchange import Exchange
from medmvl.serving.server.failures import RequestError
from medmvl.serving.server.schemas import TokenizeRequest, parse
from medmvl.serving.server.service import Service

logger = logging.getLogger(__name__)


def build_app(service: Service, page: Page | None = None) -> Any:
    """Return the FastAPI application.

    Args:
        service: the server's parts.
        page: the web page, at `/`; None: without.

    Raises:
        MissingExtraError: if fastapi is not installed.
    """
    fastapi = require("fastapi", "serve")
    settings = service.settings
    # No pages of documentation: they load scripts from the network.
    app = fastapi.FastAPI(
        title="MedM-VL",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=page.lifespan if page is not None else None,
        middleware=[host_check(settings.host, settings.allowed_hosts, extra="serve")],
    )
    _add_failures(app)
    _add_open_routes(app, service)
    _add_routes_with_key(app, service)
    if page is not None:
        app.router.routes.extend(page.routes())
    return app


def _add_failures(app: Any) -> None:
    responses = require("fastapi.responses", "serve")
    http_error = require("starlette.exceptions", "serve").HTTPException

    async def refuse(_: Any, error: RequestError) -> Any:
        return responses.JSONResponse(error.body(), error.status, error.headers())

    async def unknown(_: Any, error: Any) -> Any:
        found = RequestError(error.status_code, f"{error.detail}.")
        return responses.JSONResponse(found.body(), error.status_code)

    async def bug(_: Any, error: Exception) -> Any:
        logger.error("A request failed: %s", type(error).__name__)
        found = RequestError(500, "The server has failed on this request.", "server_error")
        return responses.JSONResponse(found.body(), 500)

    app.add_exception_handler(RequestError, refuse)
    app.add_exception_handler(http_error, unknown)
    app.add_exception_handler(Exception, bug)


def _add_open_routes(app: Any, service: Service) -> None:
    """Add what a supervisor asks without a key."""
    response = require("fastapi.responses", "serve").JSONResponse

    async def health() -> Any:
        alive = service.scheduler.alive
        return response({"status": "ok" if alive else "the decoder has ended"}, 200 if alive else 503)

    async def ready() -> Any:
        ready = service.scheduler.alive and not service.draining
        return response({"status": "ready" if ready else "draining"}, 200 if ready else 503)

    async def version() -> Any:
        return response({"version": __version__})

    for path, route in (("/health", health), ("/ready", ready), ("/version", version)):
        app.add_api_route(path, route, methods=["GET"])


def _add_routes_with_key(app: Any, service: Service) -> None:
    responses = require("fastapi.responses", "serve")
    request_class = require("fastapi", "serve").Request
    born = int(time.time())

    def check(http: Any) -> str:
        return service.guard.client(http.headers.get("authorization"))

    async def models(http: Any) -> Any:
        check(http)
        model = {"id": service.settings.name, "object": "model", "created": born, "owned_by": "medmvl"}
        model |= {"max_model_len": service.asking.context, "fingerprint": service.facts.fingerprint}
        model |= {"modalities": sorted({"text", *service.asking.predictor.model.towers})}
        return responses.JSONResponse({"object": "list", "data": [model]})

    async def metrics(http: Any) -> Any:
        check(http)
        text = service.metrics.text(service.scheduler, service.studies)
        return responses.Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def tokenize(http: Any) -> Any:
        with service.guard.place(check(http)):
            body = await service.guard.body(http)
            try:
                request = await asyncio.to_thread(parse, TokenizeRequest, body)
                ids = await asyncio.to_thread(service.asking.tokens, request)
            finally:
                service.guard.release(len(body))
        return responses.JSONResponse({"count": len(ids), "max_model_len": service.asking.context, "tokens": ids})

    async def chat(http: Any) -> Any:
        return await Exchange(service).answer(http)

    routes = (
        ("/v1/models", models, "GET"),
        ("/metrics", metrics, "GET"),
        ("/tokenize", tokenize, "POST"),
        ("/v1/chat/completions", chat, "POST"),
    )
    for path, route, method in routes:
        route.__annotations__["http"] = request_class  # fastapi decides by it what to pass
        app.add_api_route(path, route, methods=[method], response_model=None)
