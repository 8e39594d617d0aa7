"""Waiting for what another thread or process does: by its state and never by a time that a busy machine may exceed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: Seconds after which what must happen certainly does not, also on a busy machine. It costs nothing where all goes well.
PATIENCE = 120.0


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE, what: str = "") -> Any:
    """Return the condition's first true value.

    Raises:
        AssertionError: if there is none within some seconds.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what or condition}"
        time.sleep(0.01)
    return value
