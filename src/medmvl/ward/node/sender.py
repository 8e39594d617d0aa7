"""Delivery of results to one destination, with retries; every status is checked."""

from __future__ import annotations

import logging
import time
from itertools import groupby

from medmvl.errors import MedMVLError
from medmvl.ward.delivery import deliver
from medmvl.ward.network_settings import Destination, NodeSettings
from medmvl.ward.node.faults import describe_fault
from medmvl.ward.node.rows import DeliveryRow
from medmvl.ward.node.spool import Spool
from medmvl.ward.node.state import NodeState
from medmvl.ward.node.worker import backoff
from medmvl.ward.outcome import Delivery

_LOG = logging.getLogger(__name__)


class Sender:
    """Sends waiting results to one destination in the order in which they were made.

    An object counts as sent when the destination confirmed it. If the node ends between the two, the object is sent
    again with the same UID and the same bytes, which an archive stores once.
    """

    def __init__(self, destination: Destination, settings: NodeSettings, spool: Spool, state: NodeState) -> None:
        self._destination, self._settings = destination, settings
        self._spool, self._state = spool, state

    def run_once(self) -> bool:
        """Send the next result that is due; False if there is none or the destination is given time to come back."""
        now = time.time()
        failures, next_try, _ = self._state.destinations().get(self._destination.name, (0, 0.0, ""))
        if now < next_try:
            return False
        waiting = self._state.deliveries(self._destination.name, "waiting")
        due = [row for row in waiting if row.next_try <= now]
        if not due:
            return False
        _, group = next(groupby(due, key=lambda row: row.identity))
        rows = list(group)
        try:
            outcomes = deliver(self._destination, [self._spool.results / row.file for row in rows])
        except (MedMVLError, OSError) as error:
            reason = str(error) if isinstance(error, MedMVLError) else "a result file cannot be read"
            outcomes = [Delivery("unreachable", reason)] * len(rows)
        except Exception as error:  # a result must not end the thread
            _LOG.error("destination %s: unexpected %s", self._destination.name, describe_fault(error))
            outcomes = [Delivery("rejected", f"unexpected {type(error).__name__}")] * len(rows)
        for row, outcome in zip(rows, outcomes, strict=True):
            self._note(row, outcome, failures)
        self._note_destination(failures, [outcome for outcome in outcomes if outcome.state == "unreachable"])
        return True

    def _note(self, row: DeliveryRow, outcome: Delivery, failures: int) -> None:
        name = self._destination.name
        if outcome.state == "stored":
            self._state.note_delivery(row.file, name, "sent", outcome.reason)
            self._state.count("objects_sent")
        elif outcome.state == "rejected":
            last = row.attempts + 1 >= self._settings.max_attempts
            wait = time.time() + backoff(self._settings, row.attempts)
            self._state.note_delivery(row.file, name, "failed" if last else "waiting", outcome.reason, wait)
            _LOG.error("destination %s rejected an object of study %s: %s", name, row.study, outcome.reason)
        else:  # other results go first at the next attempt, in case it is this object that breaks the connection
            wait = backoff(self._settings, failures) + self._settings.retry_seconds
            self._state.postpone_delivery(row.file, name, outcome.reason, time.time() + wait)

    def _note_destination(self, failures: int, unreachable: list[Delivery]) -> None:
        name = self._destination.name
        if unreachable:
            wait = backoff(self._settings, failures)
            self._state.note_destination(name, failures + 1, time.time() + wait, unreachable[0].reason)
            self._state.count("delivery_attempts_failed")
            _LOG.warning("destination %s: %s; next attempt in %.0f s", name, unreachable[0].reason, wait)
        elif failures:
            self._state.note_destination(name, 0, 0.0, "")
            _LOG.info("destination %s is back", name)
