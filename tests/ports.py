"""Ports for servers that must be told theirs before they listen."""

from __future__ import annotations

import random
import socket
from pathlib import Path

#: Where Linux says from which ports it takes those of connections, and of servers that leave the choice to it.
_OWN_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 12_000
_RANDOM = random.SystemRandom()  # other test processes draw as well
_given: set[int] = set()


def free_port() -> int:
    """Return a port of the loopback interface on which nothing listens.

    It lies outside the system's own range: a port from there may be the one of any connection before the test listens on
    it, and a client that tries such a port again and again may even be connected with itself.
    """
    end = int(_OWN_RANGE.read_text().split()[0]) if _OWN_RANGE.is_file() else 0
    while True:
        chosen = _RANDOM.randrange(_LOWEST, end) if end > _LOWEST + 1000 else 0
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", chosen))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port
