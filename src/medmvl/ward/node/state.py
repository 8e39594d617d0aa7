"""State of the node in one SQLite file: studies, deliveries, destinations and counters.

Every change is a transaction that is on disk before the call returns, so that a killed node continues where it stopped.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medmvl.errors import WardError, counted
from medmvl.ward.node.rows import DeliveryRow, StudyRow

_TABLES = """
CREATE TABLE IF NOT EXISTS studies (
  key TEXT PRIMARY KEY, uid TEXT NOT NULL, state TEXT NOT NULL, first_arrival REAL NOT NULL, last_arrival REAL NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, next_try REAL NOT NULL DEFAULT 0, started REAL NOT NULL DEFAULT 0,
  finished REAL NOT NULL DEFAULT 0, outcome TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
  crashes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS deliveries (
  identity TEXT NOT NULL, file TEXT NOT NULL, destination TEXT NOT NULL, study TEXT NOT NULL, state TEXT NOT NULL,
  created REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, next_try REAL NOT NULL DEFAULT 0,
  reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (file, destination));
CREATE TABLE IF NOT EXISTS destinations (
  name TEXT PRIMARY KEY, failures INTEGER NOT NULL DEFAULT 0, next_try REAL NOT NULL DEFAULT 0,
  reason TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""


class NodeState:
    """The state file of a node; safe to use from several threads.

    Args:
        path: the SQLite file.
        readonly: for reading it while a node runs.

    Raises:
        WardError: if `readonly` and an earlier version wrote the file.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self._lock = threading.RLock()
        where = f"{path.resolve().as_uri()}?mode={'ro' if readonly else 'rwc'}"
        self._base = sqlite3.connect(where, uri=True, check_same_thread=False, timeout=30, isolation_level=None)
        if not readonly:
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.executescript(_TABLES)
        if "crashes" not in {row[1] for row in self._rows("PRAGMA table_info(studies)")}:
            if readonly:
                raise WardError(
                    f"An earlier version of the node wrote {path}. Start the node once to bring it up to date."
                )
            self._base.execute("ALTER TABLE studies ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:  # SQLite ends it itself after some errors, such as a full disk
                    self._base.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._base.execute(query, values).fetchall()

    def interrupt(self) -> None:
        """Set studies that are being processed to be processed again: the node is stopped on request."""
        with self._transaction() as base:
            base.execute("UPDATE studies SET state = 'receiving' WHERE state = 'processing'")

    def recover(self, now: float, wait: Callable[[int], float]) -> int:
        """Set studies that were being processed when the node crashed to be processed again, and count the crash.

        Args:
            wait: number of a study's crashes -> seconds for which other studies go first, in case it is this study that
                ends the node.

        Returns:
            the number of these studies.
        """
        with self._transaction() as base:
            found = base.execute("SELECT key, crashes + 1 FROM studies WHERE state = 'processing'").fetchall()
            base.executemany(
                "UPDATE studies SET state = 'receiving', crashes = ?, next_try = ?, reason = ? WHERE key = ?",
                [
                    (
                        crashes,
                        now + wait(crashes),
                        f"the node ended {counted(crashes, 'time')} while processing it",
                        key,
                    )
                    for key, crashes in found
                ],
            )
            return len(found)

    def note_arrival(self, key: str, uid: str, now: float) -> None:
        """Note that a new object of a study is arriving; a finished or failed study is then processed again."""
        with self._transaction() as base:
            base.execute(
                "INSERT INTO studies (key, uid, state, first_arrival, last_arrival) VALUES (?, ?, 'receiving', ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET last_arrival = excluded.last_arrival, attempts = 0, crashes = 0, "
                "next_try = 0, "
                "first_arrival = CASE WHEN state IN ('receiving', 'processing') THEN first_arrival "
                "ELSE excluded.first_arrival END, "
                "state = CASE WHEN state = 'processing' THEN state ELSE 'receiving' END",
                (key, uid, now, now),
            )

    def studies(self, state: str | None = None) -> list[StudyRow]:
        """Return studies, those that came first in front."""
        query = "SELECT key, uid, state, first_arrival, last_arrival, attempts, crashes, next_try, started, finished, outcome, reason FROM studies"
        rows = (
            self._rows(f"{query} ORDER BY first_arrival, key")
            if state is None
            else self._rows(f"{query} WHERE state = ? ORDER BY first_arrival, key", state)
        )
        return [StudyRow(*row) for row in rows]

    def start(self, key: str, now: float) -> None:
        """Note that a study is being processed."""
        with self._transaction() as base:
            base.execute("UPDATE studies SET state = 'processing', started = ? WHERE key = ?", (now, key))

    def finish(
        self,
        key: str,
        outcome: str,
        now: float,
        *,
        reason: str = "",
        identity: str = "",
        files: Sequence[str] = (),
        targets: Sequence[str] = (),
    ) -> None:
        """Note the outcome of a study and, in the same transaction, the deliveries of its result files.

        A study of which something arrived meanwhile is processed again. Deliveries that are known already stay as they
        are.
        """
        with self._transaction() as base:
            base.execute(
                "UPDATE studies SET state = CASE WHEN last_arrival > started THEN 'receiving' ELSE 'done' END, "
                "attempts = 0, crashes = 0, outcome = ?, reason = ?, finished = ? WHERE key = ?",
                (outcome, reason, now, key),
            )
            base.executemany(
                "INSERT OR IGNORE INTO deliveries (identity, file, destination, study, state, created) "
                "VALUES (?, ?, ?, ?, 'waiting', ?)",
                [(identity, file, target, key, now) for target in targets for file in files],
            )

    def put_off(self, key: str, reason: str, next_try: float, *, counts: bool = True) -> None:
        """Set a study to be processed again from `next_try`; with `counts` the attempt counts as failed."""
        with self._transaction() as base:
            base.execute(
                "UPDATE studies SET state = 'receiving', reason = ?, next_try = ?, attempts = attempts + ? WHERE key = ?",
                (reason, next_try, 1 if counts else 0, key),
            )

    def fail(self, key: str, reason: str, now: float) -> None:
        """Note that a study is given up."""
        with self._transaction() as base:
            base.execute(
                "UPDATE studies SET state = 'failed', reason = ?, finished = ? WHERE key = ?", (reason, now, key)
            )

    def mark_purged(self, key: str, take_away: Callable[[], None]) -> bool:
        """Note that a study's files are deleted; False if it is not done any more.

        Args:
            take_away: removes the files from the study's folder. It runs within the transaction, so that an object
                that arrives meanwhile is noted, and written, only after it.
        """
        with self._transaction() as base:
            query = "UPDATE studies SET state = 'purged' WHERE key = ? AND state = 'done'"
            is_done = base.execute(query, (key,)).rowcount > 0
            if is_done:
                take_away()
            return is_done

    def is_known_result(self, identity: str) -> bool:
        """Whether deliveries of this result exist, in whatever state."""
        return bool(self._rows("SELECT 1 FROM deliveries WHERE identity = ? LIMIT 1", identity))

    def deliveries(self, destination: str | None = None, state: str | None = None) -> list[DeliveryRow]:
        """Return deliveries, oldest first."""
        query = (
            "SELECT identity, file, destination, study, state, created, attempts, next_try, reason FROM deliveries "
            "WHERE (?1 IS NULL OR destination = ?1) AND (?2 IS NULL OR state = ?2) ORDER BY created, file"
        )
        return [DeliveryRow(*row) for row in self._rows(query, destination, state)]

    def note_delivery(self, file: str, destination: str, state: str, reason: str, next_try: float = 0.0) -> None:
        """Note the outcome of an attempt to send one file, and count the attempt."""
        with self._transaction() as base:
            base.execute(
                "UPDATE deliveries SET state = ?, reason = ?, next_try = ?, attempts = attempts + 1 "
                "WHERE file = ? AND destination = ?",
                (state, reason, next_try, file, destination),
            )

    def postpone_delivery(self, file: str, destination: str, reason: str, next_try: float) -> None:
        """Set a file to be sent from `next_try`; the attempt is not counted, the destination was not reached."""
        with self._transaction() as base:
            base.execute(
                "UPDATE deliveries SET reason = ?, next_try = ? WHERE file = ? AND destination = ?",
                (reason, next_try, file, destination),
            )

    def note_destination(self, name: str, failures: int, next_try: float, reason: str) -> None:
        """Note whether a destination can be reached."""
        with self._transaction() as base:
            base.execute("INSERT OR REPLACE INTO destinations VALUES (?, ?, ?, ?)", (name, failures, next_try, reason))

    def destinations(self) -> dict[str, tuple[int, float, str]]:
        """Return name -> (failures in a row, time of the next attempt, reason)."""
        rows = self._rows("SELECT name, failures, next_try, reason FROM destinations")
        return {str(name): (int(failures), float(when), str(reason)) for name, failures, when, reason in rows}

    def retry_failed(self) -> tuple[int, int]:
        """Set failed studies and deliveries to be tried again and return how many of each."""
        with self._transaction() as base:
            studies = base.execute(
                "UPDATE studies SET state = 'receiving', attempts = 0, crashes = 0, next_try = 0 WHERE state = 'failed'"
            ).rowcount
            files = base.execute(
                "UPDATE deliveries SET state = 'waiting', attempts = 0, next_try = 0 WHERE state = 'failed'"
            ).rowcount
            return studies, files

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter."""
        with self._transaction() as base:
            base.execute(
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                (name, amount),
            )

    def set_value(self, name: str, value: float) -> None:
        """Set a counter to a value, such as a time."""
        with self._transaction() as base:
            base.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, value))

    def counters(self) -> dict[str, float]:
        """Return all counters."""
        return {str(name): float(value) for name, value in self._rows("SELECT name, value FROM counters")}
