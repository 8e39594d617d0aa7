"""TCP and TLS connections of the listener, limited so that no peer can hold up others or fill the memory."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from medmvl.ward.network_settings import NodeSettings

#: bytes of the longest PDU that is read: far more than an association request or a data PDU of the agreed size has
MAX_PDU_BYTES = 2**20


class _LimitedReceive:
    """Reads bytes of one connection until it sent too many.

    Args:
        receive: returns so many bytes of the connection.
        max_bytes: limit of the bytes between two answers of ours, that is of one object.
        on_excess: called before a connection is dropped because of the limit of bytes.
    """

    def __init__(self, receive: Callable[[int], bytearray], max_bytes: int, on_excess: Callable[[], None]) -> None:
        self._receive, self._max_bytes, self._on_excess = receive, max_bytes, on_excess
        self._bytes = 0

    def __call__(self, size: int) -> bytearray:
        """Return `size` bytes, fewer if the peer hung up.

        Raises:
            OSError: above a limit; pynetdicom then drops the connection.
        """
        if size > MAX_PDU_BYTES:
            raise OSError(f"a PDU of {size} bytes is announced, more than {MAX_PDU_BYTES}")
        self._bytes += size
        if self._bytes > self._max_bytes:
            self._on_excess()
            raise OSError(f"an object has more than {self._max_bytes} bytes")
        return self._receive(size)

    def reset(self) -> None:
        """Begin to count again: the peer had its answer."""
        self._bytes = 0


class _LimitedHandler(RequestHandler):
    """Makes an association whose connection is read through `_LimitedReceive`."""

    server: LimitedServer

    def _create_association(self) -> Any:
        association = super()._create_association()
        connection: Any = association.dul.socket
        limited = _LimitedReceive(connection.recv, self.server.max_object_bytes, self.server.on_excess)
        connection.recv = limited
        association.bind(evt.EVT_DIMSE_SENT, lambda event: limited.reset())
        return association


class LimitedServer(ThreadedAssociationServer):
    """An association server that waits for no single peer.

    pynetdicom's own does the TLS handshake in the thread that accepts connections, and reads without a time limit.

    Attributes:
        max_object_bytes: limit of the bytes of one object.
        on_excess: called when a peer exceeds it.
    """

    max_object_bytes: int
    on_excess: Callable[[], None]

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection; a TLS handshake happens in the thread of its association."""
        assert self.socket is not None
        connection, address = self.socket.accept()
        try:
            connection.settimeout(self.ae.network_timeout)
            if self.ssl_context is not None:
                connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except OSError:
            connection.close()
            raise
        return connection, address


def start_server(
    entity: AE, settings: NodeSettings, tls: Any, handlers: list[Any], on_excess: Callable[[], None]
) -> Callable[[], None]:
    """Serve associations in a thread and return the function that stops it.

    Args:
        tls: SSL context, None for connections without TLS.
        handlers: pairs of pynetdicom event and function.
        on_excess: called when a peer sends an object above the limit of size.

    Raises:
        OSError: if the port cannot be opened.
    """
    server: Any = entity.make_server(
        (settings.host, settings.port),
        ssl_context=tls,
        evt_handlers=handlers,
        server_class=LimitedServer,
        request_handler=_LimitedHandler,
    )
    server.max_object_bytes = settings.max_object_megabytes * 2**20
    server.on_excess = on_excess
    entity._servers.append(server)  # its shutdown removes it from there
    threading.Thread(target=server.serve_forever, daemon=True, name="listener").start()
    return server.shutdown
