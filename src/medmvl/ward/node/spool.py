"""Received objects and results on disk."""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import threading
import time
from pathlib import Path

from medmvl.errors import WardError
from medmvl.files import atomic, atomic_directory, private_folder, sync_folder
from medmvl.ward.process import StudyResult

#: begin of the names of folders that are to be deleted
_ASIDE = ".purged-"


class Spool:
    """The folder of a node: `studies/<key>/<object>.dcm`, `results/<identity>/<file>.dcm` and the state file.

    Names are hashes keyed with a secret of this spool, never UIDs or patient data. Logs and metrics show these names, and
    nobody without the secret can test which study one belongs to. Only the user that runs the node can read the spool.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.studies, self.results = root / "studies", root / "results"
        for folder in (root, self.studies, self.results):
            private_folder(folder)
        self._key = _secret(root / "names.key")

    @property
    def state_file(self) -> Path:
        """The SQLite file of `NodeState`."""
        return self.root / "state.sqlite"

    def free_bytes(self) -> int:
        """Return the free space of the file system."""
        return shutil.disk_usage(self.root).free

    def name_of(self, uid: str) -> str:
        """Return the name of a study or object in this spool: the first 128 bits of the keyed SHA-256 of its UID."""
        return hmac.new(self._key, uid.encode(), hashlib.sha256).hexdigest()[:32]

    def object_path(self, key: str, uid: str) -> Path:
        """Return the path of a received object."""
        return self.studies / key / f"{self.name_of(uid)}.dcm"

    def store(self, path: Path, content: bytes) -> None:
        """Write a received object so that it is whole and on disk when this returns.

        Raises:
            OSError: if it cannot be written; nothing is left then.
        """
        if not path.parent.is_dir():
            private_folder(path.parent)
            sync_folder(self.studies)
        temporary = path.with_name(f".{path.name}.{threading.get_ident()}")
        try:
            with temporary.open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)

    def clean(self) -> None:
        """Remove what `set_aside` set aside, also before the node was killed."""
        for path in self.studies.glob(f"{_ASIDE}*"):
            shutil.rmtree(path, ignore_errors=True)

    def remove_partial(self) -> None:
        """Remove objects that a killed node left half written; only while none is being received."""
        for path in self.studies.glob("*/.*"):
            path.unlink(missing_ok=True)

    def store_result(self, result: StudyResult) -> list[str]:
        """Write a result's objects as one folder and return their paths below `results`.

        The folder appears complete or not at all. The folder of an earlier attempt is kept, because its objects may
        have been sent already.
        """
        target = self.results / result.identity
        if not target.is_dir():
            with atomic_directory(target, private=True) as folder:
                result.write(folder)
            sync_folder(self.results)
        return self.result_files(result.identity)

    def result_files(self, identity: str) -> list[str]:
        """Return the paths of a result's objects below `results`, empty if there is no such result."""
        return sorted(f"{identity}/{path.name}" for path in (self.results / identity).glob("*.dcm"))

    def set_aside(self, key: str) -> None:
        """Rename the folder of a study for `clean` to delete; objects that arrive later get a new one."""
        if (self.studies / key).is_dir():
            (self.studies / key).rename(self.studies / f"{_ASIDE}{key}-{time.time_ns()}")

    def remove_result(self, identity: str) -> None:
        """Delete the objects of a result."""
        shutil.rmtree(self.results / identity, ignore_errors=True)


def _secret(file: Path) -> bytes:
    """Return the 32 random bytes in a file, which is made if it is not there.

    Raises:
        WardError: if the file holds something else.
    """
    if not file.exists():
        with atomic(file) as temporary:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(handle, "wb") as new:
                new.write(os.urandom(32))
    content = file.read_bytes()
    if len(content) != 32:
        raise WardError(f"{file} must hold 32 bytes. Remove it if the spool is empty, or restore it.")
    return content
