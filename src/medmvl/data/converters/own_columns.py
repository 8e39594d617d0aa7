"""Columns of own tables that hold images or volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmvl.data.converters.media import source_state
from medmvl.data.converters.own_media import entries_of
from medmvl.data.converters.own_tree import DICOM_SUFFIXES, PICTURE_SUFFIXES, VOLUME_SUFFIXES, holds_dicom, is_dicom

#: Rows from the beginning of a table that are looked at.
_ROWS = 50


def media_columns(rows: Sequence[Mapping[str, Any]], root: Path, source: Path) -> dict[str, str]:
    """Return column -> flag that takes it, of the columns that hold pictures or name files or DICOM folders that exist.

    Args:
        rows: the cells of each row.
        root: folder that paths are relative to.
        source: the folder of the data, which paths do not leave.
    """
    found = {}
    for column in dict.fromkeys(name for row in rows[:_ROWS] for name in row):
        kinds = {_flag(entry, root, source) for row in rows[:_ROWS] for entry in entries_of(row.get(column))} - {""}
        if kinds:
            found[column] = "--volume" if "--volume" in kinds else "--image"
    return found


def _flag(entry: Any, root: Path, source: Path) -> str:
    """Return the flag for an entry of a cell: a picture, or the path of a file or folder that exists; "" for anything else."""
    if isinstance(entry, bytes | dict):
        return "--image"
    if not isinstance(entry, str):
        return ""
    path = root / entry.replace("\\", "/")
    if source_state(path, source) != "usable":
        return ""
    if path.is_dir():  # a word such as "CT" may be the name of a folder by chance
        return "--volume" if holds_dicom(path) else ""
    name = entry.lower()
    if name.endswith(VOLUME_SUFFIXES):
        return "--volume"
    return "--image" if name.endswith((*PICTURE_SUFFIXES, *DICOM_SUFFIXES)) or is_dicom(path) else ""
