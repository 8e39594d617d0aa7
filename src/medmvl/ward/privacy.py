"""Silence for the DICOM libraries, whose log lines and warnings quote attributes of patients and UIDs."""

from __future__ import annotations

import logging
import warnings

import pydicom  # noqa: F401 - sets the level of its logger when it is imported, so it must come first

for _name in ("pydicom", "pynetdicom", "highdicom", "dicomweb_client"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


def silence_warnings() -> None:
    """Let this process show no warnings of libraries; for commands, whose output is kept in logs."""
    warnings.filterwarnings("ignore", category=UserWarning)
