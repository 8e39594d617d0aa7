"""Sending result objects to a destination, with the outcome of each object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medmvl.ward.c_store import c_store
from medmvl.ward.dicomweb import stow
from medmvl.ward.network_settings import Destination
from medmvl.ward.outcome import Delivery


def deliver(destination: Destination, files: Sequence[Path]) -> list[Delivery]:
    """Send DICOM files and return the outcome of each, in order; network errors become outcomes, not exceptions.

    Raises:
        WardError: if credentials or certificates that the destination names are missing.
    """
    if destination.dicom is not None:
        return c_store(destination.dicom, files)
    assert destination.dicomweb is not None
    return stow(destination.dicomweb, files)
