"""Sessions of visitors: each has a private folder, its studies and its conversation, and nothing outlives it."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmvl.serving.page.conversation import Turn
from medmvl.serving.page.errors import PageError
from medmvl.serving.page.settings import PageSettings
from medmvl.serving.page.upload_names import Upload


@dataclass(frozen=True, eq=False)
class OpenStudy:
    """An image or a volume that was read.

    Attributes:
        folder: holds the files for the viewer and the tensors for the models, see `medmvl.serving.page.study`.
        facts: what the page shows of it: kind, shape, spacing, units, history, warnings.
    """

    folder: Path
    facts: dict[str, Any]

    @property
    def kind(self) -> str:
        """ "image" or "volume"."""
        return str(self.facts["kind"])


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Evidence for a sentence of an answer, as the page shows it.

    Attributes:
        path: the map from 0 to 1, see `medmvl.serving.page.explaining`.
        study: the study that it lies over.
        facts: its sentence, numbers and doubts.
    """

    path: Path
    study: OpenStudy
    facts: dict[str, Any]


@dataclass(eq=False)
class Session:
    """What one visitor has open. Every change of the studies raises `version`, to which questions and answers are tied.

    Attributes:
        folder: readable by the process's user only; all files of the visitor are in it.
        version: number of changes of the studies so far.
        uploads: files that were sent, or are being sent, for the next study.
        uploaded: their bytes together.
        studies: in the order in which the model sees them.
        turns: the conversation about them.
        evidence: evidence id -> its map.
        seen, used: `time.monotonic()` of the last request, and of the last one by the visitor's hand.
    """

    folder: Path
    version: int = 0
    uploads: list[Upload] = field(default_factory=list)
    uploaded: int = 0
    studies: list[OpenStudy] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    evidence: dict[str, HeatMap] = field(default_factory=dict)
    seen: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)
    closed: bool = False

    def __post_init__(self) -> None:
        self.busy, self.reading = asyncio.Lock(), asyncio.Lock()

    def clear(self) -> None:
        """Forget studies, conversation and files."""
        self.version += 1
        self.studies, self.turns, self.evidence, self.uploads, self.uploaded = [], [], {}, [], 0
        for entry in list(self.folder.iterdir()) if self.folder.exists() else []:
            _remove(entry)

    def forget_conversation(self) -> None:
        """Forget the conversation; the studies stay."""
        self.version += 1
        for heat in self.evidence.values():
            heat.path.unlink(missing_ok=True)
        self.turns, self.evidence = [], {}

    def remove_unused(self) -> None:
        """Remove the files that no open study, upload or map needs, so that opening again and again takes no more room."""
        needed = {study.folder for study in self.studies} | {upload.path for upload in self.uploads}
        needed |= {heat.path for heat in self.evidence.values()}
        holders = {path.parent for path in needed} - {self.folder}
        for folder in (*holders, self.folder):
            for entry in folder.glob("*"):
                if entry not in needed | holders:
                    _remove(entry)
        if self.closed:  # a reader may have written while the session was removed
            shutil.rmtree(self.folder, ignore_errors=True)

    def new_upload(self, name: str) -> Upload:
        """Add a file that is about to be sent.

        Args:
            name: for display.

        Returns:
            The upload. Its place is one that no other has, nor had before `clear` or an opening: a request given up
            then may still hold its file.
        """
        folder = self.uploads[-1].path.parent if self.uploads else self.new_folder("uploads")
        number = int(self.uploads[-1].path.name) + 1 if self.uploads else 0
        upload = Upload(name, folder / f"{number:05d}")
        self.uploads.append(upload)
        return upload

    def count(self, upload: Upload, size: int) -> None:
        """Count bytes of a file that is being sent."""
        upload.size += size
        self.uploaded += size

    def forget_upload(self, upload: Upload) -> None:
        """Remove a file that did not arrive; nothing happens if it was removed before."""
        upload.path.unlink(missing_ok=True)
        if upload in self.uploads:
            if len(self.uploads) == 1:
                _remove(upload.path.parent)
            self.uploaded -= upload.size
            self.uploads.remove(upload)  # last: while it is listed it takes room

    def new_folder(self, name: str) -> Path:
        """Return a new folder inside the session's."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def check(self, version: Any) -> None:
        """Raise if a request speaks of studies that are not open any more.

        Raises:
            PageError: 409.
        """
        if version != self.version:
            raise PageError(409, "The picture has changed since. Ask again.", "changed")


class Sessions:
    """All sessions, by a secret token that only the visitor's page knows.

    Args:
        settings: passwords and limits.
        home: folder in which the sessions' folders are.
    """

    def __init__(self, settings: PageSettings, home: Path) -> None:
        self._settings, self._home = settings, home
        self._open: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._open)

    async def begin(self, password: Any) -> str:
        """Return the token of a new session.

        Raises:
            PageError: 401 for a wrong password, 503 if there are too many sessions.
        """
        known = self._settings.passwords
        # All are compared, each in constant time, so that the time tells nothing.
        right = [hmac.compare_digest(one.encode(), str(password or "").encode()) for one in known]
        if known and not any(right):
            if password:
                await asyncio.sleep(1)  # slows down guessing
            raise PageError(401, "This page asks for a password.", "password_wrong" if password else "password_needed")
        self.end_unused()
        if len(self._open) >= self._settings.visitors:
            raise PageError(503, "Too many visitors are here. Try again later.", "full")
        token = secrets.token_urlsafe(32)
        self._open[token] = Session(Path(tempfile.mkdtemp(prefix="visitor-", dir=self._home)))
        return token

    def get(self, token: str | None, *, by_hand: bool = True) -> Session:
        """Return a session.

        Args:
            by_hand: whether the visitor does something, rather than the page by its timer.

        Raises:
            PageError: 403 if there is none.
        """
        session = self._open.get(token or "")
        if session is None:
            raise PageError(403, "This session has ended. Reload the page.", "ended")
        session.seen = time.monotonic()
        if by_hand:
            session.used = session.seen
        return session

    def end(self, token: str | None) -> None:
        """End a session and remove its files."""
        session = self._open.pop(token or "", None)
        if session is not None:
            session.closed = True
            session.clear()
            shutil.rmtree(session.folder, ignore_errors=True)

    def end_unused(self) -> None:
        """End the sessions whose page is gone or that nobody uses."""
        now = time.monotonic()
        lost, unused = now - self._settings.lost_seconds, now - 60 * self._settings.unused_minutes
        for token, session in list(self._open.items()):
            if session.seen < lost or session.used < unused:
                self.end(token)

    def end_all(self) -> None:
        """End all sessions."""
        for token in list(self._open):
            self.end(token)


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
