"""The node as a service: listener, worker, senders and metrics around one spool folder."""

from __future__ import annotations

import logging
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from medmvl.errors import WardError
from medmvl.files import OutputLock
from medmvl.ward.answering import Answerer
from medmvl.ward.network_settings import NodeSettings
from medmvl.ward.node.listener import Listener
from medmvl.ward.node.metrics import serve_metrics
from medmvl.ward.node.sender import Sender
from medmvl.ward.node.spool import Spool
from medmvl.ward.node.state import NodeState
from medmvl.ward.node.worker import Worker, backoff
from medmvl.ward.process import check_names
from medmvl.ward.protocol import Protocol
from medmvl.ward.study import read_header, text

_LOG = logging.getLogger(__name__)
#: seconds between two rounds of a thread that found nothing to do, between signs of life, and between purges
_IDLE, _HEARTBEAT, _PURGE = 0.2, 2.0, 60.0
#: seconds that a stopped node waits for the study and the result that it is working on
_JOIN = 60.0


def node_settings(protocol: Protocol) -> NodeSettings:
    """Return the protocol's node section.

    Raises:
        WardError: if it has none, or no destination.
    """
    if protocol.node is None:
        raise WardError("The protocol has no section `node`. It needs at least callers and spool.")
    if not protocol.destinations:
        raise WardError("The protocol has no `destinations`: the node would not know where to send results.")
    return protocol.node


class Node:
    """A running node.

    Args:
        protocol: with the sections node and destinations.
        load: returns the model; called in the background while the listener receives already.

    Raises:
        WardError: if the protocol lacks something, or the port cannot be opened.
        BusyError: if another node uses the spool.
    """

    def __init__(self, protocol: Protocol, load: Callable[[], Answerer]) -> None:
        self._settings = node_settings(protocol)
        check_names(protocol)
        self._protocol, self._load = protocol, load
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self.spool = Spool(Path(self._settings.spool))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the node until the block ends."""
        with ExitStack() as stack:
            stack.enter_context(OutputLock(self.spool.root, folder=True))
            state = NodeState(self.spool.state_file)
            stack.callback(state.close)
            crashed = state.recover(time.time(), lambda crashes: backoff(self._settings, crashes - 1))
            if crashed:
                _LOG.warning("the node ended while it processed a study; other studies go first")
                state.count("studies_interrupted", crashed)
            self.spool.clean()
            self.spool.remove_partial()
            self._register_unknown(state)
            listener = Listener(self._settings, self.spool, state)
            jobs = [self._processing(state, listener), *self._sending(state)]
            threads = [threading.Thread(target=self._guard, args=(job,), daemon=True) for job in jobs]
            listener.start()
            stack.callback(listener.stop)
            if self._settings.metrics_port is not None:
                stack.enter_context(serve_metrics(self._settings.metrics_port, self.spool, state))
            for thread in threads:
                thread.start()
            stack.callback(self._end, threads, state)
            threading.Thread(target=self._guard, args=(lambda: self._housekeeping(state),), daemon=True).start()
            yield

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the node is stopped or one of its threads fails.

        Raises:
            Exception: what ended a thread, such as a model that cannot be loaded.
        """
        self._stop.wait(seconds)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Let the node end; a study that is being processed is finished first."""
        self._stop.set()

    def _end(self, threads: list[threading.Thread], state: NodeState) -> None:
        self._stop.set()
        for thread in threads:
            thread.join(_JOIN)
        if self._failure is None:
            with suppress(sqlite3.OperationalError):
                state.interrupt()

    def _guard(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._failure = error
            self._stop.set()

    def _processing(self, state: NodeState, listener: Listener) -> Callable[[], None]:
        def run() -> None:
            answerer = self._load()
            _LOG.info("the model is loaded")
            self._repeat(Worker(self._protocol, self._settings, self.spool, state, listener, answerer).run_once)

        return run

    def _sending(self, state: NodeState) -> list[Callable[[], None]]:
        senders = [
            Sender(destination, self._settings, self.spool, state) for destination in self._protocol.destinations
        ]
        return [lambda sender=sender: self._repeat(sender.run_once) for sender in senders]  # type: ignore[misc]

    def _repeat(self, job: Callable[[], bool]) -> None:
        """Call `job` until the node stops; a state file that cannot be written (full disk) is waited for."""
        while not self._stop.is_set():
            try:
                busy = job()
            except sqlite3.OperationalError as error:
                _LOG.error("the state cannot be written: %s", error)
                busy = False
                self._stop.wait(self._settings.retry_seconds)
            if not busy:
                self._stop.wait(_IDLE)

    def _housekeeping(self, state: NodeState) -> None:
        last_purge = 0.0
        while not self._stop.is_set():
            try:
                state.set_value("heartbeat", time.time())
                if time.monotonic() - last_purge > _PURGE:
                    purge(self.spool, state, self._settings.keep_hours)
                    last_purge = time.monotonic()
            except sqlite3.OperationalError as error:
                _LOG.error("the state cannot be written: %s", error)
            self._stop.wait(_HEARTBEAT)

    def _register_unknown(self, state: NodeState) -> None:
        """Take studies into the state that are in the spool only, as after the loss of the state file."""
        known = {study.key for study in state.studies()}
        for folder in self.spool.studies.iterdir():
            first = next(folder.glob("*.dcm"), None) if folder.name not in known else None
            try:
                header = None if first is None else read_header(first)
            except WardError as error:
                _LOG.error("a study of the spool is not taken up: %s", error)
                continue
            if header is not None and self.spool.name_of(text(header, "StudyInstanceUID")) == folder.name:
                state.note_arrival(folder.name, text(header, "StudyInstanceUID"), time.time())


def purge(spool: Spool, state: NodeState, keep_hours: float) -> None:
    """Delete the objects of studies that were finished `keep_hours` ago and have no result waiting or failed."""
    pending = {row.study for row in state.deliveries() if row.state != "sent"}
    limit = time.time() - keep_hours * 3600
    for study in state.studies("done"):
        if study.finished > limit or study.key in pending:
            continue
        if state.mark_purged(study.key, lambda key=study.key: spool.set_aside(key)):  # type: ignore[misc]
            spool.clean()
            for identity in {row.identity for row in state.deliveries() if row.study == study.key}:
                spool.remove_result(identity)


def run_node(protocol: Protocol, load: Callable[[], Answerer], on_ready: Callable[[], None] = lambda: None) -> None:
    """Run a node until SIGTERM or SIGINT.

    Raises:
        MedMVLError: as `Node`, or if the model cannot be loaded or the state file cannot be used.
    """
    node = Node(protocol, load)

    def stop(number: int, frame: FrameType | None) -> None:
        node.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        with node.running():
            on_ready()
            node.wait()
    except sqlite3.Error as error:
        raise WardError(
            f"The state file {node.spool.state_file} cannot be used: {error}. Check the disk; without the file, the node "
            "processes the studies in the spool again."
        ) from error
