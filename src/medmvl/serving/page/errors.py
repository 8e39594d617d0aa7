"""Failures that the page shows to its visitor."""

from __future__ import annotations

from typing import Any


class PageError(Exception):
    """A request of the page that is refused.

    Args:
        status: of HTTP.
        message: what came, what is allowed, what to do.
        code: key of a sentence in the page's languages, shown instead of the message where there is one.
        more: further entries of the JSON body.
    """

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        return {"error": str(self), "code": self.code, **self.more}
