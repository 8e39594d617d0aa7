"""DICOM peers for tests, on loopback: a PACS that may fail, and senders."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pydicom
from pynetdicom import AE, AllStoragePresentationContexts, evt

from ports import free_port


class FakePacs:
    """A PACS in this process.

    Attributes:
        stored: SOP instance UID -> data set.
        received: how often each SOP instance UID arrived.
        answers: statuses to give before it stores anything; None breaks the connection instead.
        associations: how many it accepted.
    """

    def __init__(self, title: str = "PACS") -> None:
        self.title, self.port = title, free_port()
        self.stored: dict[str, pydicom.Dataset] = {}
        self.received: Counter[str] = Counter()
        self.answers: list[int | None] = []
        self.associations = 0
        self._server: Any = None

    def start(self) -> FakePacs:
        entity = AE(ae_title=self.title)
        entity.supported_contexts = AllStoragePresentationContexts
        entity.require_called_aet = True
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ACCEPTED, self._count)]
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _count(self, event: Any) -> None:
        self.associations += 1

    def _store(self, event: Any) -> int:
        status = self.answers.pop(0) if self.answers else 0
        if status is None:
            event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        if status != 0:
            return status or 0xC000
        data = event.dataset
        data.file_meta = event.file_meta
        self.received[data.SOPInstanceUID] += 1
        self.stored[data.SOPInstanceUID] = data
        return 0x0000

    def target(self, name: str = "pacs") -> dict[str, Any]:
        return {"name": name, "dicom": {"host": "127.0.0.1", "port": self.port, "ae_title": self.title}}


def send(
    files: Path | list[Path], port: int, calling: str = "MODALITY", called: str = "MEDMVL", tls: Any = None
) -> list[int]:
    """Send files over one association and return the statuses, [] if the association was not accepted."""
    paths = sorted(files.rglob("*.dcm")) if isinstance(files, Path) else files
    objects = [pydicom.dcmread(path) for path in paths]
    entity = AE(ae_title=calling)
    for storage, syntax in dict.fromkeys((data.SOPClassUID, data.file_meta.TransferSyntaxUID) for data in objects):
        entity.add_requested_context(storage, syntax)
    tls_args = {} if tls is None else {"tls_args": (tls, "localhost")}
    association = entity.associate("127.0.0.1", port, ae_title=called, **tls_args)
    if not association.is_established:
        return []
    statuses = [association.send_c_store(data).get("Status", -1) for data in objects]
    association.release()
    return statuses
