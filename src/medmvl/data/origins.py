"""Where the linked files of a conversion come from: a map that stays with the key of the pseudonyms.

Names of files and folders may name patients, so a conversion links them under neutral names, and no folder of records holds the
old ones. The map is a private file next to the key, which its owner keeps; without it the old names are not known.
"""

from __future__ import annotations

import contextlib
import json
import os
from functools import cached_property
from pathlib import Path

from medmvl.data.pseudonyms import default_key_file
from medmvl.data.roots import Root, conversion_report
from medmvl.remote import RemotePath


class Origins:
    """Map from the neutral name of a linked file or folder to the path that it was linked from.

    Args:
        key_file: of the pseudonyms that made the names.
    """

    def __init__(self, key_file: Path) -> None:
        self.path = key_file.with_name(f"{key_file.name}.origins.jsonl")

    @classmethod
    def of_records(cls, file: Root) -> Origins:
        """Return the map of the conversion that wrote a records file."""
        options = conversion_report(file).get("options")
        named = options.get("key_file") if isinstance(options, dict) else None
        return cls(Path(named) if isinstance(named, str) and named else default_key_file())

    def add(self, token: str, source: Path) -> None:
        """Note where a file or folder was linked from. A map that cannot be written only leaves messages without the path."""
        place = str(source.resolve())
        if self._known.get(token) == place:
            return
        self._known[token] = place
        with contextlib.suppress(OSError):
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "a", encoding="utf-8", errors="surrogateescape") as lines:
                lines.write(json.dumps({"media": token, "source": place}) + "\n")

    def of(self, relative: str) -> str | None:
        """Return the path that a record's file or folder was linked from; None if it is not known here."""
        return self._known.get(Path(relative).name.partition(".")[0])

    @cached_property
    def _known(self) -> dict[str, str]:
        found: dict[str, str] = {}
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return found
        for line in lines:
            with contextlib.suppress(
                ValueError, KeyError, TypeError
            ):  # a line that a killed conversion left half written
                entry = json.loads(line)
                found[str(entry["media"])] = str(entry["source"])
        return found


def origins_of(file: Root) -> Origins | None:
    """Return the map for a records file; None for one in an object store, whose key is elsewhere."""
    return None if isinstance(file, RemotePath) else Origins.of_records(file)
