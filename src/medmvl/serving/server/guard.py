"""Who may ask, and how much at once: API keys, limits per key, bodies of bounded size."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from medmvl.serving.server.failures import RequestError, overloaded, too_many
from medmvl.serving.server.settings import Limits

_WITHOUT_KEY = "-"


class Guard:
    """Admits requests.

    Args:
        keys: API key -> id; empty: no key is asked for.
        limits: of open requests and bodies.
    """

    def __init__(self, keys: Mapping[str, str], limits: Limits) -> None:
        self._keys = {key.encode(): name for key, name in keys.items()}
        self._limits = limits
        self._open: dict[str, int] = defaultdict(int)
        self._recent: dict[str, deque[float]] = defaultdict(deque)
        self._held = 0

    @property
    def open(self) -> int:
        """Number of open requests."""
        return sum(self._open.values())

    def client(self, authorization: str | None) -> str:
        """Return the id of the key in an Authorization header.

        Raises:
            RequestError: 401 without a valid key.
        """
        if not self._keys:
            return _WITHOUT_KEY
        scheme, _, given = (authorization or "").partition(" ")
        offered = given.strip().encode()
        # All keys are compared, each in constant time, so that the time tells nothing.
        found = [name for key, name in self._keys.items() if hmac.compare_digest(key, offered)]
        if scheme.lower() != "bearer" or not found:
            raise RequestError(
                401, "A valid API key is needed: Authorization: Bearer KEY.", "authentication_error", "invalid_api_key"
            )
        return found[0]

    @contextmanager
    def place(self, client: str) -> Iterator[None]:
        """Hold one of the places for open requests.

        Raises:
            RequestError: 429 if the key has used up its share, 503 if all places are taken.
        """
        self._count_minute(client)
        if self._open[client] >= self._limits.per_key:
            raise too_many(f"This key has {self._limits.per_key} requests open, which is its limit.", 1)
        if self.open >= self._limits.waiting:
            raise overloaded(f"The server has {self._limits.waiting} requests open, which is its limit.")
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1

    async def body(self, request: Any) -> bytes:
        """Read the body of a Starlette request.

        Raises:
            RequestError: 413 if it is too large, 408 if it comes too slowly, 503 if too many are held.
        """
        limit = self._limits.body_mib * 2**20
        stated = request.headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated) > limit:
            raise _too_large(self._limits.body_mib)
        try:
            async with asyncio.timeout(self._limits.upload_seconds):
                return await self._collect(request, limit)
        except TimeoutError:
            seconds = self._limits.upload_seconds
            raise RequestError(408, f"The body did not arrive within {seconds:g} seconds.", code="timeout") from None

    def release(self, size: int) -> None:
        """Count a body as not held any more."""
        self._held -= size

    async def _collect(self, request: Any, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            async for piece in request.stream():
                size += len(piece)
                self._held += len(piece)
                if size > limit:
                    raise _too_large(self._limits.body_mib)
                if self._held > self._limits.bodies_mib * 2**20:
                    raise overloaded("The server holds as many request bodies as it may.")
                pieces.append(piece)
        except BaseException:
            self.release(size)
            raise
        return b"".join(pieces)

    def _count_minute(self, client: str) -> None:
        if not self._limits.per_minute:
            return
        now, recent = time.monotonic(), self._recent[client]
        while recent and recent[0] < now - 60:
            recent.popleft()
        if len(recent) >= self._limits.per_minute:
            raise too_many(
                f"This key may send {self._limits.per_minute} requests per minute.", int(recent[0] + 60 - now) + 1
            )
        recent.append(now)


def _too_large(mib: int) -> RequestError:
    return RequestError(413, f"The request body is larger than {mib} MiB, the limit of this server.", code="too_large")
