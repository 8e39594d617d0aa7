"""Audit file: one JSON line per request, without its content."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
from pathlib import Path
from typing import Any

from medmvl.errors import OutputError


class _PrivateFile(logging.handlers.TimedRotatingFileHandler):
    """A daily file that only its owner can read."""

    def _open(self) -> Any:
        handle = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(handle, "a", encoding="utf-8")


class Audit:
    """Writes audit lines; a new file begins every day (UTC).

    Args:
        path: the file of today; earlier ones have the date behind their name. None writes nothing.
        days: how many earlier files are kept.

    Raises:
        OutputError: if the file cannot be written.
    """

    def __init__(self, path: Path | None, days: int) -> None:
        self._handler: _PrivateFile | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handler = _PrivateFile(path, when="midnight", backupCount=days, encoding="utf-8", utc=True)
        except OSError as error:
            raise OutputError(f"The audit file {path} cannot be written: {error.strerror}.") from None

    def write(self, **facts: Any) -> None:
        """Write one line."""
        if self._handler is not None:
            line = json.dumps(facts, ensure_ascii=False)
            self._handler.handle(logging.LogRecord("audit", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Close the file."""
        if self._handler is not None:
            self._handler.close()
