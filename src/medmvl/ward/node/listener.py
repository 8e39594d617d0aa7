"""The DICOM listener: C-ECHO and C-STORE; an object is on disk before it is confirmed."""

from __future__ import annotations

import io
import logging
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from medmvl.errors import WardError
from medmvl.ward.network_settings import NodeSettings
from medmvl.ward.node.connections import start_server
from medmvl.ward.node.spool import Spool
from medmvl.ward.node.state import NodeState
from medmvl.ward.study import MANUFACTURER, REQUIRED_UIDS, faulty_uids, text
from medmvl.ward.tls import server_context

_LOG = logging.getLogger(__name__)
#: answers to C-STORE (PS3.4, table B.2-1)
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
_MAX_ASSOCIATIONS = 64
#: a deflated object can be a thousand times its size on the wire
_NOT_ACCEPTED = (DeflatedExplicitVRLittleEndian,)


class Listener:
    """A running DICOM listener.

    Args:
        settings: addresses, AE titles, TLS and limits.
        on_arrival: called after an object was stored.
    """

    def __init__(
        self, settings: NodeSettings, spool: Spool, state: NodeState, on_arrival: Callable[[], None] = lambda: None
    ) -> None:
        self._settings, self._spool, self._state, self._on_arrival = settings, spool, state, on_arrival
        self._lock = threading.Lock()
        self._sending: dict[Any, set[str]] = defaultdict(set)  # association -> keys of the studies it sends
        self._shut_down: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to listen.

        Raises:
            WardError: if the port cannot be opened or the TLS files cannot be used.
        """
        entity = AE(ae_title=self._settings.ae_title)
        entity.supported_contexts = AllStoragePresentationContexts
        for context in entity.supported_contexts:
            context.transfer_syntax = [syntax for syntax in ALL_TRANSFER_SYNTAXES if syntax not in _NOT_ACCEPTED]
        entity.add_supported_context(Verification)
        entity.require_called_aet = True
        entity.require_calling_aet = list(self._settings.callers)
        entity.maximum_associations = _MAX_ASSOCIATIONS
        entity.network_timeout = self._settings.network_timeout
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, lambda event: SUCCESS),
            (evt.EVT_CONN_CLOSE, self._on_close),
            (evt.EVT_REJECTED, lambda event: self._count("associations_rejected")),
            (evt.EVT_ABORTED, lambda event: self._count("associations_aborted")),
        ]
        tls = None if self._settings.tls is None else server_context(self._settings.tls)
        try:
            self._shut_down = start_server(entity, self._settings, tls, handlers, self._on_excess)
        except OSError as error:
            where = f"{self._settings.host}:{self._settings.port}"
            raise WardError(f"The node cannot listen on {where}: {error.strerror}.") from error

    def stop(self) -> None:
        """Accept no more associations."""
        self._shut_down()

    def is_sending(self, key: str) -> bool:
        """Whether an open association has sent an object of this study."""
        with self._lock:
            return any(key in keys for keys in self._sending.values())

    def _on_close(self, event: Any) -> None:
        with self._lock:
            self._sending.pop(event.assoc, None)

    def _on_excess(self) -> None:
        _LOG.warning("dropped an object of more than %d MB", self._settings.max_object_megabytes)
        self._count("objects_refused_large")

    def _on_store(self, event: Any) -> int:
        """Store an object and return the status of the answer."""
        try:
            content = event.encoded_dataset()
            header = _identify(content)
        except (
            InvalidDicomError,
            ValueError,
            KeyError,
            AttributeError,
            TypeError,
            EOFError,
            OSError,
            WardError,
        ) as error:
            _LOG.warning("refused an object that cannot be read: %s", type(error).__name__)
            self._count("objects_refused_broken")
            return CANNOT_UNDERSTAND
        if text(header, "Manufacturer") == MANUFACTURER:
            self._count("own_results_ignored")  # a PACS that forwards everything sends our results back
            return SUCCESS
        try:
            return self._keep(event.assoc, header, content)
        except (OSError, sqlite3.Error) as error:
            _LOG.error("refused an object, it cannot be written: %s", type(error).__name__)
            self._count("objects_refused_disk")
            return OUT_OF_RESOURCES

    def _keep(self, association: Any, header: Dataset, content: bytes) -> int:
        if self._spool.free_bytes() < self._settings.min_free_megabytes * 2**20 + len(content):
            _LOG.error("refused an object: it would leave less than %d MB free", self._settings.min_free_megabytes)
            self._count("objects_refused_disk")
            return OUT_OF_RESOURCES
        uid = text(header, "StudyInstanceUID")
        key = self._spool.name_of(uid)
        path = self._spool.object_path(key, text(header, "SOPInstanceUID"))
        with self._lock:
            self._sending[association].add(key)
        if path.is_file() and path.read_bytes() == content:
            self._count("objects_received_again")
            return SUCCESS
        # The state comes first: if the node ends here, the sender has no confirmation and sends the object again.
        self._state.note_arrival(key, uid, time.time())
        self._spool.store(path, content)
        self._count("objects_received")
        self._on_arrival()
        return SUCCESS

    def _count(self, name: str) -> None:
        try:
            self._state.count(name)
        except sqlite3.Error:
            _LOG.error("a counter could not be written")


def _identify(content: bytes) -> Dataset:
    """Return the attributes of a Part 10 file that decide where it goes.

    Raises:
        WardError: if a UID is missing or invalid.
    """
    tags = [*REQUIRED_UIDS, "Manufacturer"]
    header = dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=tags)
    header.decode()
    if faulty := faulty_uids(header):
        raise WardError(f"The object lacks {', '.join(faulty)}.")
    return header
