"""Failures of requests, with the status and body that OpenAI's clients understand."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: what came, what is allowed, what to do; without the content of the request.
        kind: OpenAI's error type.
        code: a word for programs.
        retry_after: seconds after which a retry makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.retry_after = status, kind, code, retry_after

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        return {"error": {"message": str(self), "type": self.kind, "param": None, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def overloaded(what: str) -> RequestError:
    """Return the failure of a request that finds no place; clients try again or elsewhere."""
    return RequestError(503, f"{what} Try again later.", "server_error", "overloaded", retry_after=2)


def too_many(what: str, seconds: int) -> RequestError:
    """Return the failure of a key that has used up its share."""
    return RequestError(429, what, "rate_limit_error", "rate_limit_exceeded", retry_after=seconds)


def timed_out(seconds: float) -> RequestError:
    """Return the failure of a request that took too long."""
    return RequestError(504, f"The request was not answered within {seconds:g} seconds.", "server_error", "timeout")
