"""Metadata tables that bring what a data set's NIfTI headers lack (CT-RATE: rescale and spacing)."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from medmvl.errors import ImagingError
from medmvl.files import PathLike, existing_file

_COLUMNS = ("VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing")


class RescaleTable:
    """Slope, intercept and spacing per volume, from CT-RATE's `train_metadata.csv` or `validation_metadata.csv`.

    The original NIfTI files hold stored values: HU = RescaleSlope * value + RescaleIntercept, and the spacing in their
    headers is unreliable. The `*_fixed` files need no table.

    Args:
        path: the csv, with the columns VolumeName, RescaleSlope, RescaleIntercept, XYSpacing ("[x, y]"), ZSpacing.

    Raises:
        ImagingError: if columns are absent.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = existing_file(path, "metadata file")
        with self.path.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise ImagingError(f"{self.path} lacks the column(s) {', '.join(missing)} of CT-RATE's metadata.")
            self._rows = {row["VolumeName"]: {name: row[name] for name in _COLUMNS} for row in reader}

    def __len__(self) -> int:
        return len(self._rows)

    def options(self, volume: PathLike) -> dict[str, Any]:
        """Return the arguments slope, intercept and (where it is stated) spacing of `read_volume` for a file.

        Raises:
            ImagingError: if the table has no row for the file, or the row no numbers.
        """
        row = self._rows.get(Path(volume).name)
        if row is None:
            raise ImagingError(f"{self.path} has no row for {Path(volume).name}.")
        try:
            options: dict[str, Any] = {"slope": float(row["RescaleSlope"]), "intercept": float(row["RescaleIntercept"])}
            x, y = (float(v) for v in json.loads(row["XYSpacing"]))
            z = float(row["ZSpacing"] or "nan")
        except (ValueError, TypeError) as error:
            raise ImagingError(f"{self.path}: the row of {Path(volume).name} is not numbers: {error}.") from error
        if math.isfinite(z):
            options["spacing"] = (z, y, x)
        return options
