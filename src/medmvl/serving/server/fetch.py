"""Files from hosts on the allow-list; nothing else is ever fetched."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from medmvl.serving.server.failures import RequestError


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect may lead to a host that is not allowed."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""
        return


def fetch(url: str, hosts: Sequence[str], max_bytes: int, seconds: float) -> bytes:
    """Return what a URL holds.

    Args:
        hosts: the allow-list, checked once more.
        max_bytes: largest size.
        seconds: that the host may be silent.

    Raises:
        RequestError: if the host is not allowed, does not answer with the file, or sends too much.
    """
    if urlsplit(url).netloc not in hosts:
        raise RequestError(400, "The URL names a host that is not on the server's allow-list.")
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=seconds) as answer:
            data: bytes = answer.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        code = f" (status {error.code})" if isinstance(error, urllib.error.HTTPError) else ""
        raise RequestError(400, f"The URL could not be fetched{code}.") from None
    if len(data) > max_bytes:
        raise RequestError(413, f"The URL holds more than {max_bytes // 2**20} MiB.", code="too_large")
    return data
