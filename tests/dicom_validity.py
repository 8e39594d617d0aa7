"""Checks of DICOM objects by dicom3tools' `dciodvfy`, for tests; skipped with a message where it is not installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_dciodvfy = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: apt-get install dicom3tools)"
)


def dicom_errors(path: Path) -> list[str]:
    """Return the errors, not the warnings, that `dciodvfy` finds in a DICOM file."""
    checked = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (checked.stdout + checked.stderr).splitlines()
    assert lines, "dciodvfy names at least the kind of object"
    return [line for line in lines if line.startswith("Error")]
