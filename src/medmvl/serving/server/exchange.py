"""One request from its arrival to its audit line."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

from medmvl.errors import require
from medmvl.inference.decoding import Row
from medmvl.serving.server.asking import parameters
from medmvl.serving.server.failures import RequestError, timed_out
from medmvl.serving.server.replies import Reply, finished, started
from medmvl.serving.server.scheduler import Job
from medmvl.serving.server.schemas import ChatRequest, parse
from medmvl.serving.server.service import Service

#: Status of a request whose client left, as web servers log it.
_LEFT = 499


class Exchange:
    """Answers one chat request. Whatever happens, its place is freed and its audit line written once.

    Args:
        service: the server's parts.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._arrived = time.monotonic()
        self._client = ""
        self._held = ExitStack()
        self._request: ChatRequest | None = None
        self._rows: list[Row] = []
        self._job: Job | None = None

    async def answer(self, http: Any) -> Any:
        """Return the response to a Starlette request.

        Raises:
            RequestError: if it is not answered.
        """
        streaming = False
        try:
            job, reply = await self._begin(http)
            responses = require("starlette.responses", "serve")
            if reply.request.stream:
                await _unless_left(http, started(job))
                streaming = True
                return responses.StreamingResponse(self._stream(job, reply), media_type="text/event-stream")
            await _unless_left(http, finished(job))
            self._end(200)
            return responses.JSONResponse(reply.whole())
        except RequestError as error:
            self._end(error.status)
            raise
        except asyncio.CancelledError:
            self._end(_LEFT)
            raise
        finally:
            if not streaming:
                self._release()

    async def _begin(self, http: Any) -> tuple[Job, Reply]:
        """Admit, read and check the request, and hand it to the decoder."""
        service = self._service
        self._client = service.guard.client(http.headers.get("authorization"))
        self._held.enter_context(service.guard.place(self._client))
        body = await service.guard.body(http)
        size, seconds = len(body), service.limits.seconds
        try:
            self._request = await asyncio.to_thread(parse, ChatRequest, body)
            del body
            try:
                async with asyncio.timeout(seconds):
                    self._rows = await service.asking.rows(self._request, self._client)
            except TimeoutError:
                raise timed_out(seconds) from None
        finally:
            service.guard.release(size)
        loop = asyncio.get_running_loop()
        self._job = Job(self._rows, self._arrived + seconds, seconds, loop)
        service.scheduler.submit(self._job)
        decoder = service.scheduler.decoder
        threshold = service.asking.threshold(self._request)
        names = (self.id, service.settings.name, service.facts.fingerprint)
        reply = Reply(*names, self._request, self._rows, decoder, threshold)
        return self._job, reply

    async def _stream(self, job: Job, reply: Reply) -> AsyncIterator[bytes]:
        status = _LEFT
        try:
            async for chunk in reply.chunks(job):
                yield chunk
            status = 200 if job.failure is None else job.failure.status
        finally:
            self._end(status)
            self._release()

    def _release(self) -> None:
        if self._job is not None and not self._job.done:
            self._service.scheduler.cancel(self._job)
        self._held.close()

    def _end(self, status: int) -> None:
        """Count the request and write its audit line."""
        metrics, job = self._service.metrics, self._job
        now = time.monotonic()
        first = job.times.first - self._arrived if job is not None and job.times.first else None
        if status == 200 and job is not None and first is not None:
            metrics.observe(self._rows, self._arrived, job.times)
        else:
            metrics.failed(status)
        self._service.audit.write(
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            request=self.id,
            status=status,
            key=self._client,
            model=self._service.facts.model,
            geometry=self._service.facts.geometry,
            inputs=self._rows[0].keys if self._rows else None,
            parameters=parameters(self._request, self._rows) if self._request is not None and self._rows else None,
            prompt_tokens=len(self._rows[0].encoded["input_ids"]) if self._rows else None,
            completion_tokens=sum(len(row.token_ids) for row in self._rows),
            finish=[row.finish for row in self._rows],
            seconds=round(now - self._arrived, 4),
            first_token_seconds=None if first is None else round(first, 4),
            confidence=[row.confidence for row in self._rows if row.finish in ("stop", "length")],
        )


async def _unless_left(http: Any, work: Any) -> None:
    """Wait for `work`, and give up when the client hangs up.

    Raises:
        RequestError: 499 if the client has left.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RequestError(_LEFT, "The client has left.")
    finally:
        working.cancel()
        leaving.cancel()


async def _left(http: Any) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
