"""Search for the folders that the names in a checkpoint (`Qwen/Qwen2.5-3B-Instruct`, `pretrained/siglip`) stand for.

Only configs, tokenizer and processor files are searched for, not weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from medmvl.errors import CheckpointError
from medmvl.files import PathLike

#: Files that are needed of a base part; weights are not.
_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")

#: Seconds within which the hub must confirm a name.
_HUB_SECONDS = 8.0


@dataclass
class Resolver:
    """Finds the folder that a name in a checkpoint stands for.

    The search order is: the given mapping, the current directory, the checkpoint's own parent folders, the local hub
    cache, the hub (unless HF_HUB_OFFLINE is set).

    Attributes:
        checkpoint: the folder whose names are resolved.
        given: name -> local folder, from the user.
        used: name -> how it was found.
    """

    checkpoint: Path
    given: Mapping[str, PathLike] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)

    def __call__(self, name: str, what: str) -> Path:
        """Return the folder of `name`.

        Args:
            what: the part ("LLM", "image encoder"), for the message.

        Raises:
            CheckpointError: if it is not found, naming the option that helps.
        """
        for find, how in (
            (self._given, "given"),
            (self._beside, "found as a path"),
            (self._cached, "from the local hub cache"),
            (self._fetched, "from the hub"),
        ):
            folder = find(name)
            if folder is not None:
                self._check_config(folder, name, what)
                self.used[name] = how
                return folder
        raise CheckpointError(
            f"The checkpoint's {what} is called {name!r}, and its config, tokenizer and processor files are not here: not a "
            "folder below the current directory or beside the checkpoint, not in the hub cache, and the hub gave no answer. "
            f"Say where they are with --resolve {name}=FOLDER (weights are not needed)."
        )

    def unused(self) -> list[str]:
        """Return the given names that the checkpoint does not use."""
        return sorted(set(self.given) - set(self.used))

    def _given(self, name: str) -> Path | None:
        return Path(self.given[name]) if name in self.given else None

    def _beside(self, name: str) -> Path | None:
        start = self.checkpoint.resolve()
        for base in (Path.cwd(), start, *start.parents):
            folder = base / name
            if (folder / "config.json").is_file():
                return folder
        return None

    def _cached(self, name: str) -> Path | None:
        return _snapshot(name, local_files_only=True)

    def _fetched(self, name: str) -> Path | None:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            return None
        return _snapshot(name, local_files_only=False) if _answers(name) else None

    def _check_config(self, folder: Path, name: str, what: str) -> None:
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"The {what} {name!r} was sent to {folder}, which holds no config.json. Give the folder with its config, "
                "tokenizer and processor files."
            )


def _answers(name: str) -> bool:
    """Return whether the hub confirms a name within a few seconds, also behind a firewall that drops packets."""
    try:
        HfApi().repo_info(name, timeout=_HUB_SECONDS)
    except Exception:  # the hub's HTTP client raises many types; each means that there is no answer
        return False
    return True


def _snapshot(name: str, *, local_files_only: bool) -> Path | None:
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES), local_files_only=local_files_only))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError):
        return None


def parse_resolutions(pairs: list[str]) -> dict[str, str]:
    """Return NAME=FOLDER pairs as a mapping.

    Raises:
        CheckpointError: for a pair without `=` or with an empty side.
    """
    found = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise CheckpointError(
                f"--resolve takes NAME=FOLDER, got {pair!r}. NAME is what the checkpoint's config.json says."
            )
        found[name] = folder
    return found
