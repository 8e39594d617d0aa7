"""Rows of the node's state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StudyRow:
    """A study as the state knows it.

    Attributes:
        key: name of its folder, without patient data.
        state: receiving, processing, done, failed, or purged.
        attempts: failed attempts to process it since its last object arrived.
        crashes: how often the node ended while it processed the study, since its last object arrived.
        started: when its last processing began, seconds since the epoch.
        outcome: of the last processing: results, nothing-to-send, no-series, unchanged, or "".
        reason: why it failed or waits, else "".
    """

    key: str
    uid: str
    state: str
    first_arrival: float
    last_arrival: float
    attempts: int
    crashes: int
    next_try: float
    started: float
    finished: float
    outcome: str
    reason: str


@dataclass(frozen=True)
class DeliveryRow:
    """A result file on its way to one destination.

    Attributes:
        identity: UUID of the result; all files of one share it.
        state: waiting, sent, or failed.
    """

    identity: str
    file: str
    destination: str
    study: str
    state: str
    created: float
    attempts: int
    next_try: float
    reason: str
