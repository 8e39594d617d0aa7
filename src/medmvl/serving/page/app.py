"""Routes of the page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import mimetypes
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from importlib import resources
from typing import Any
from urllib.parse import unquote

from medmvl.errors import MedMVLError, require
from medmvl.serving.page.asking import Asking
from medmvl.serving.page.errors import PageError
from medmvl.serving.page.explaining import evidence_file, explain
from medmvl.serving.page.export import export
from medmvl.serving.page.opening import Readers, open_uploads, receive
from medmvl.serving.page.sessions import Session, Sessions
from medmvl.serving.page.settings import PREFIX, PageSettings
from medmvl.serving.page.study import VIEW_IMAGE, VIEW_VOLUME
from medmvl.serving.protection import without_paths

logger = logging.getLogger(__name__)

#: What the page's documents may load: scripts, styles and data of this server only, no inline code.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MOST_BODY = 2**20
#: Seconds between two looks for sessions that have ended.
_SWEEP = 15.0


class Page:
    """The page's requests.

    Args:
        asking: the models.
        readers: processes that read uploads.
        sessions: of the visitors.
        settings: limits.
        facts: what the page shows of the model: name, towers, questions.
    """

    def __init__(
        self, asking: Asking, readers: Readers, sessions: Sessions, settings: PageSettings, facts: dict[str, Any]
    ) -> None:
        self.asking, self.readers, self.sessions, self.settings = asking, readers, sessions, settings
        self._facts = facts
        self._responses = require("starlette.responses", "demo")
        self._gone = require("starlette.requests", "demo").ClientDisconnect
        static = resources.files("medmvl.serving.page") / "static"
        self._files = dict(_static_files(static, ""))

    def routes(self) -> list[Any]:
        """Return the Starlette routes."""
        route = require("starlette.routing", "demo").Route
        posts: dict[str, Callable[..., Awaitable[Any]]] = {
            "session": self._begin,
            "leave": self._leave,
            "ping": self._ping,
            "clear": self._clear,
            "open": self._open,
            "forget": self._forget,
            "ask": self._ask,
            "chances": self._chances,
            "explain": self._explain,
            "prefer": self._prefer,
            "export": self._export,
        }
        found = [route(f"{PREFIX}/api/{name}", self._guarded(work), methods=["POST"]) for name, work in posts.items()]
        found += [
            route(f"{PREFIX}/api/file", self._guarded(self._file), methods=["PUT"]),
            route(f"{PREFIX}/api/study/{{number:int}}/{{what}}", self._guarded(self._study), methods=["GET"]),
            route(f"{PREFIX}/api/evidence/{{name}}", self._guarded(self._evidence), methods=["GET"]),
            route(f"{PREFIX}/{{path:path}}", self._static, methods=["GET"]),
            route("/", self._static, methods=["GET"]),
        ]
        return found

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """End unused sessions while an application runs, and all of them at its end."""
        task = asyncio.ensure_future(self._sweep())
        try:
            yield
        finally:
            task.cancel()
            self.sessions.end_all()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            self.sessions.end_unused()

    # --- files of the page --------------------------------------------------------------------------------------------

    async def _static(self, http: Any) -> Any:
        name = http.path_params.get("path") or "index.html"
        if name not in self._files:
            return self._responses.PlainTextResponse("There is no such file.", 404, _HEADERS)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return self._responses.Response(self._files[name], media_type=kind, headers=_HEADERS)

    # --- requests -----------------------------------------------------------------------------------------------------

    def _guarded(self, work: Callable[..., Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """Return a handler that turns refusals into JSON."""

        async def handle(http: Any) -> Any:
            try:
                # Browsers say so of requests that a page of another site makes them send, and no script can change it.
                if http.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                    raise PageError(403, "The request comes from a page of another site.")
                return await work(http)
            except self._gone:
                return self._json({}, 400)  # nobody reads it
            except Exception as error:
                found = _failure(error)
                return self._json(found.body(), found.status)

        return handle

    def _json(self, body: Mapping[str, Any], status: int = 200) -> Any:
        return self._responses.JSONResponse(body, status, _HEADERS)

    def _session(self, http: Any, *, by_hand: bool = True) -> Session:
        # A header, not a cookie: another site's page cannot send it, and two tabs are two visitors.
        return self.sessions.get(http.headers.get("x-session"), by_hand=by_hand)

    async def _begin(self, http: Any) -> Any:
        body = await _body(http)
        token = await self.sessions.begin(body.get("password"))
        return self._json({"session": token, **self._facts})

    async def _leave(self, http: Any) -> Any:
        self.sessions.end(http.headers.get("x-session"))
        return self._json({})

    async def _ping(self, http: Any) -> Any:
        self._session(http, by_hand=False)
        return self._json({})

    async def _clear(self, http: Any) -> Any:
        session = self._session(http)
        session.clear()
        return self._json({"version": session.version})

    async def _forget(self, http: Any) -> Any:
        session = self._session(http)
        session.forget_conversation()
        return self._json({"version": session.version})

    async def _file(self, http: Any) -> Any:
        name = unquote(http.headers.get("x-name", ""))
        await receive(self._session(http), name, http.stream(), self.settings)
        return self._json({})

    async def _open(self, http: Any) -> Any:
        return self._json(await open_uploads(self._session(http), self.readers, await _body(http)))

    async def _study(self, http: Any) -> Any:
        session, number, what = self._session(http), http.path_params["number"], http.path_params["what"]
        if number >= len(session.studies):
            raise PageError(404, "There is no such study.", "changed")
        study = session.studies[number]
        names = {"view": VIEW_IMAGE if study.kind == "image" else VIEW_VOLUME}
        names["model"] = "model-0.png" if study.kind == "image" else "model-0.nii"
        if what not in names:
            raise PageError(404, "There is no such picture.", "changed")
        kind = "image/png" if study.kind == "image" else "application/octet-stream"
        return self._responses.FileResponse(study.folder / names[what], media_type=kind, headers=_HEADERS)

    async def _ask(self, http: Any) -> Any:
        return await self._streamed(self.asking.ask(self._session(http), await _body(http)))

    async def _explain(self, http: Any) -> Any:
        return await self._streamed(explain(self.asking, self._session(http), await _body(http)))

    async def _evidence(self, http: Any) -> Any:
        path = evidence_file(self._session(http), http.path_params["name"])
        return self._responses.FileResponse(path, media_type="application/octet-stream", headers=_HEADERS)

    async def _streamed(self, events: AsyncGenerator[dict[str, Any], None]) -> Any:
        """Return events as a stream of lines of JSON; the visitor who leaves it ends them."""
        try:
            first = await anext(events)  # what is refused has a status of its own
        except StopAsyncIteration:
            raise PageError(409, "The picture has changed since. Ask again.", "changed") from None
        return self._responses.StreamingResponse(
            _lines(first, events), media_type="application/x-ndjson", headers=_HEADERS
        )

    async def _chances(self, http: Any) -> Any:
        return self._json(await self.asking.chances(self._session(http), await _body(http)))

    async def _prefer(self, http: Any) -> Any:
        return self._json(self.asking.prefer(self._session(http), await _body(http)))

    async def _export(self, http: Any) -> Any:
        session, request = self._session(http), await _body(http)
        names = [model.name for model in self.asking.models]
        data, kind, suffix = await asyncio.to_thread(export, session, names, request)
        headers = {**_HEADERS, "Content-Disposition": f'attachment; filename="medmvl-conversation.{suffix}"'}
        return self._responses.Response(data, media_type=kind, headers=headers)


async def _lines(first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[bytes]:
    """Yield events as lines of JSON; closes the events when the visitor leaves."""
    async with contextlib.aclosing(events):
        yield _line(first)
        try:
            async for event in events:
                yield _line(event)
        except Exception as error:
            yield _line(_failure(error).body())


def _failure(error: Exception) -> PageError:
    """Return what a visitor is told of an error; of a bug or a full disk, the log gets no content of a request."""
    if isinstance(error, PageError):
        return error
    if isinstance(error, MedMVLError):
        return PageError(400, without_paths(str(error)))
    logger.error("A request of the page failed: %s", type(error).__name__)
    reason = error.strerror if isinstance(error, OSError) else None
    return PageError(500, f"The server failed on this request{f': {reason}' if reason else ''}.", "failed")


def _line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode() + b"\n"


async def _body(http: Any) -> dict[str, Any]:
    """Return the JSON object in a request; NaN, infinite numbers and halves of surrogate pairs are no JSON.

    Raises:
        PageError: if it is none, or too large.
    """
    data = bytearray()
    async for piece in http.stream():
        data += piece
        if len(data) > _MOST_BODY:
            raise PageError(413, "The request is too large.")
    try:
        found = json.loads(data or b"{}")
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PageError(400, "The request is no JSON object.")
    return found


def _static_files(folder: Any, prefix: str) -> Any:
    """Yield path and bytes of each file of the page; nothing else is ever served from the disk."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _static_files(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry.read_bytes()
