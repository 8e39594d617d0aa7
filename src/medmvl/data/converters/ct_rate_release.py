"""Detection of the release of CT-RATE's volumes, and the rescale that its values need."""

from __future__ import annotations

import ast
import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np

from medmvl.data.converters.converter import Job
from medmvl.errors import DataError

METADATA = {"train": "train_metadata", "valid": "validation_metadata"}

#: what nibabel raises for a file that is damaged or no NIfTI
UNREADABLE = (OSError, EOFError, zlib.error, nibabel.filebasedimages.ImageFileError, ValueError)


@dataclass(frozen=True)
class Rescale:
    """A volume's row of the metadata table: HU = slope · value + intercept, and its spacing (x, y, z) in mm."""

    slope: float
    intercept: float
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class Release:
    """The volumes of one split.

    Attributes:
        folder: where they are.
        kind: "ready": values in HU, used as they are. "original": stored values and an unreliable header; rescale and
            spacing come from the metadata table. "shifted": stored values and a correct header; the rescale comes from
            the metadata table.
        rescale: volume stem -> its row of the metadata table, for "original" and "shifted".
    """

    folder: Path
    kind: Literal["ready", "original", "shifted"]
    rescale: dict[str, Rescale] = field(default_factory=dict)


def find_release(job: Job, base: Path, split: str) -> Release | None:
    """Return the release of a split's volumes; None, with a note, if there are no volumes.

    Raises:
        DataError: if the release or the folder that the options name is not there.
    """
    ready, wanted = job.options.folder, job.options.volumes
    fixed, original = base / f"{split}_fixed", base / split
    if ready:
        return _existing(job, base / ready.format(split=split), split, "ready", {})
    if not fixed.is_dir() and not original.is_dir():
        job.report.note(f"No volumes of the split {split!r}; it was not converted.")
        return None
    if wanted == "fixed" or (wanted == "auto" and fixed.is_dir()):
        return _check_fixed(job, _existing(job, fixed, split, "ready", {}), base, split)
    rescale = read_rescale(job, base, split)
    if not rescale:
        job.report.note(
            f"No metadata table for {original.name}/: its volumes are used as they are, though HU and spacing of the "
            "original release are not to be trusted."
        )
        return _existing(job, original, split, "ready", {})
    return _existing(job, original, split, "original", rescale)


def _existing(
    job: Job, folder: Path, split: str, kind: Literal["ready", "original"], rescale: dict[str, Rescale]
) -> Release:
    if not folder.is_dir():
        raise DataError(
            f"{folder} (split {split!r}) does not exist. Choose volumes=auto, fixed or original, or folder=."
        )
    return Release(folder, kind, rescale)


def _check_fixed(job: Job, release: Release, base: Path, split: str) -> Release:
    """Look at the first volume: the published facts do not say whether the fixed release is in HU already."""
    least = _least_value(release.folder)
    if least is None:
        return release
    name = release.folder.name
    if least < 0:
        job.report.note(f"{name}/ is taken to be in HU: its first volume goes down to {least:g}.")
        return release
    rescale = read_rescale(job, base, split)
    if not rescale:
        job.report.note(f"{name}/ has no value below 0 and no metadata table: its volumes may not be in HU.")
        return release
    job.report.note(f"{name}/ has no value below 0: slope and intercept of the metadata table were applied.")
    return Release(release.folder, "shifted", rescale)


def _least_value(folder: Path) -> float | None:
    """Return the least value of the middle slice of the first readable volume below `folder`."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if not name.endswith((".nii", ".nii.gz")):
                continue
            try:
                image = nibabel.load(Path(parent) / name)
                middle = np.asanyarray(image.dataobj[..., image.shape[2] // 2])  # type: ignore[attr-defined]
            except (*UNREADABLE, IndexError):
                return None
            return float(middle.min())
    return None


def read_rescale(job: Job, base: Path, split: str) -> dict[str, Rescale]:
    """Return volume stem -> row of the metadata table, without rows that lack slope or intercept; {} if there is no table."""
    file = base / "metadata" / f"{METADATA[split]}.csv"
    if not file.is_file():
        return {}
    table = {}
    for row in job.rows(file, ["VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing"]):
        x, y = ast.literal_eval(row["XYSpacing"] or "[1.0, 1.0]")
        z = float(row["ZSpacing"] or "nan")
        if math.isnan(z):
            job.report.note("Volumes without a ZSpacing are taken to be 1 mm apart, as CT-CHAT does.")
            z = 1.0
        slope, intercept = _number(row["RescaleSlope"]), _number(row["RescaleIntercept"])
        if slope and intercept is not None:  # never a default: such a volume is a fault of its own
            table[row["VolumeName"].split(".")[0]] = Rescale(slope, intercept, (float(x), float(y), z))
    return table


def _number(text: str) -> float | None:
    """Return a cell as a finite number, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
