"""Metadata tables with values that the NIfTI headers of a data set lack (CT-RATE: rescale and spacing)."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from medmvl.errors import ImagingError, the_named
from medmvl.files import PathLike, existing_file

_COLUMNS = ("VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing")


class RescaleTable:
    """Slope, intercept and spacing per volume from CT-RATE's `train_metadata.csv` or `validation_metadata.csv`.

    The original NIfTI files contain stored values: HU = RescaleSlope * value + RescaleIntercept, and the spacing in
    their headers is unreliable. The `*_fixed` files need no table.

    Args:
        path: csv file in UTF-8 (with or without byte order mark) or UTF-16, with comma, semicolon or tab, and with the
            columns VolumeName, RescaleSlope, RescaleIntercept, XYSpacing ("[x, y]"), ZSpacing.

    Raises:
        ImagingError: if the file is not text in these encodings, or columns are missing.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = existing_file(path, "metadata file")
        try:
            reader = csv.DictReader(io.StringIO(text := _text_of(self.path), newline=""), delimiter=_delimiter(text))
            names = reader.fieldnames or []
            rows = list(reader)
        except csv.Error as error:
            raise ImagingError(f"{self.path} is not a csv table: {error}.") from error
        missing = [name for name in _COLUMNS if name not in names]
        if missing:
            raise ImagingError(f"{self.path} lacks {the_named('column', missing)} of CT-RATE's metadata.")
        self._rows = {row["VolumeName"]: {name: row[name] for name in _COLUMNS} for row in rows}

    def __len__(self) -> int:
        return len(self._rows)

    def options(self, volume: PathLike) -> dict[str, Any]:
        """Return the arguments slope, intercept and (if stated) spacing of `read_volume` for a file.

        Raises:
            ImagingError: if the table has no row for the file, or the row is not numeric.
        """
        row = self._rows.get(Path(volume).name)
        if row is None:
            raise ImagingError(f"{self.path} has no row for {Path(volume).name}.")
        try:
            options: dict[str, Any] = {"slope": float(row["RescaleSlope"]), "intercept": float(row["RescaleIntercept"])}
            x, y = (float(v) for v in json.loads(row["XYSpacing"]))
            z = float(row["ZSpacing"] or "nan")
        except (ValueError, TypeError, RecursionError) as error:
            raise ImagingError(f"{self.path}: the row of {Path(volume).name} is not numbers: {error}.") from error
        if math.isfinite(z):
            options["spacing"] = (z, y, x)
        return options


def _text_of(path: Path) -> str:
    """Return the text of a file in UTF-8 or, with a byte order mark, UTF-16."""
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ImagingError(f"{path} is neither UTF-8 nor UTF-16 text. Save it as CSV UTF-8.") from error


def _delimiter(text: str) -> str:
    """Return the delimiter that occurs most often in the header line: comma, semicolon or tab."""
    header = text.partition("\n")[0]
    return max(",;\t", key=header.count)
