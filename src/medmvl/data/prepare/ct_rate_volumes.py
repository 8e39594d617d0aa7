"""Where the volumes of CT-RATE are, which of them to use, and what the original release needs to be in HU."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import nibabel
import numpy as np

from medmvl.data.prepare.base import Job
from medmvl.data.prepare.tables import iter_csv
from medmvl.errors import DataError
from medmvl.files import atomic

_METADATA = {"train": "train_metadata", "valid": "validation_metadata"}
_SUFFIXES = (".nii.gz", ".npy", ".npz", ".nii")


class Volumes:
    """The volumes of one split: name in the tables -> path in the records.

    The `*_fixed` release is used as it is. The original release stores raw values under headers that are not to be
    trusted: its volumes are written below `out/volumes` in HU with the spacing of the metadata table, and the records
    name those.
    """

    def __init__(self, job: Job, base: Path, split: str) -> None:
        self._job, self._base, self._split = job, base, split
        fixed = base / f"{split}_fixed"
        wanted = job.options.volumes
        ready = job.options.folder
        self._fixed = bool(ready) or (fixed.is_dir() if wanted == "auto" else wanted == "fixed")
        self._folder = base / ready.format(split=split) if ready else fixed if self._fixed else base / split
        if not self._folder.is_dir():
            raise DataError(
                f"{self._folder} does not exist. Choose --set volumes=auto, fixed or original, or --set folder=."
            )
        self._excluded = self._read_excluded()
        self._rescale = {} if self._fixed else self._read_metadata()
        self._known: dict[str, str | None] = {}
        self._checked_units = False

    def path(self, name: str) -> str | None:
        """Return the path of a volume for a record; None, accounted for, if it is not to be used or not there."""
        if name not in self._known:
            self._known[name] = self._find(name)
        elif self._known[name] is None:
            self._job.ledger.leave_out("question about a volume that was dropped")
        return self._known[name]

    def _find(self, name: str) -> str | None:
        stem = name.split(".")[0]
        parts = stem.split("_")
        ledger = self._job.ledger
        if stem in self._excluded:
            ledger.leave_out("not a chest CT (no_chest list)")
            return None
        if len(parts) != 4:
            ledger.fault("volume name is not <split>_<patient>_<scan>_<reconstruction>", name)
            return None
        if self._job.options.reconstructions == "first" and parts[3] != "1":
            ledger.leave_out("further reconstruction of a scan")
            return None
        folder = self._folder / "_".join(parts[:2]) / "_".join(parts[:3])
        suffixes = _SUFFIXES if self._fixed else (".nii.gz", ".nii")
        file = next((folder / f"{stem}{s}" for s in suffixes if (folder / f"{stem}{s}").is_file()), None)
        if file is None:
            ledger.fault("volume is missing", name)
            return None
        if not self._fixed:
            return self._correct(file, stem)
        self._note_units(file)
        return file.relative_to(self._job.source).as_posix()

    def _note_units(self, file: Path) -> None:
        """Look at the first volume: the published facts do not say whether the fixed release is in HU already."""
        if self._checked_units or file.suffix not in (".gz", ".nii"):
            return
        self._checked_units = True
        image = nibabel.load(file)
        middle = np.asanyarray(image.dataobj[..., image.shape[2] // 2])  # type: ignore[attr-defined]
        if middle.min() >= 0:
            raise DataError(
                f"{file.name} holds no value below 0, so the volumes under {self._folder.name}/ are not in HU. "
                "Convert the original release with --set volumes=original, which applies the metadata table."
            )
        self._job.ledger.note(
            f"{self._folder.name}/ is taken to be in HU: its first volume goes down to {middle.min():g}."
        )

    def _read_excluded(self) -> set[str]:
        """Return the stems that are no chest CT; a line may hold a whole path."""
        file = self._base / "metadata" / f"no_chest_{self._split}.txt"
        if not file.is_file():
            return set()
        lines = file.read_text(encoding="utf-8").split()
        return {line.replace("\\", "/").rsplit("/", 1)[-1].split(".")[0] for line in lines}

    def _read_metadata(self) -> dict[str, tuple[float, float, tuple[float, float, float]]]:
        """Return stem -> (slope, intercept, spacing (x, y, z) mm) for the original release."""
        file = self._base / "metadata" / f"{_METADATA[self._split]}.csv"
        columns = ["VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing"]
        table = {}
        for row in iter_csv(file, columns):
            x, y = ast.literal_eval(row["XYSpacing"] or "[1.0, 1.0]")
            z = float(row["ZSpacing"] or "nan")
            if math.isnan(z):
                self._job.ledger.note("Volumes without a ZSpacing are taken to be 1 mm apart, as CT-CHAT does.")
                z = 1.0
            slope, intercept = float(row["RescaleSlope"] or 1), float(row["RescaleIntercept"] or 0)
            table[row["VolumeName"].split(".")[0]] = (slope, intercept, (float(x), float(y), z))
        return table

    def _correct(self, file: Path, stem: str) -> str | None:
        """Write the volume in HU with its true spacing below `out`; return its path from there."""
        if stem not in self._rescale:
            self._job.ledger.fault("volume has no row in the metadata table", file.name)
            return None
        target = self._job.out / "volumes" / file.relative_to(self._base)
        relative = target.relative_to(self._job.out).as_posix()
        self._job.ledger.exported = True
        if target.is_file():
            return relative
        slope, intercept, spacing = self._rescale[stem]
        try:
            image = nibabel.load(file)
            stored = np.asanyarray(image.dataobj)  # type: ignore[attr-defined]
        except (OSError, EOFError, nibabel.filebasedimages.ImageFileError, ValueError) as error:
            self._job.ledger.fault(f"volume is not readable ({type(error).__name__})", file.name)
            return None
        hounsfield = np.clip(np.rint(stored * np.float32(slope) + np.float32(intercept)), -32768, 32767).astype(
            np.int16
        )
        # The sides of the axes are kept from the header; only the step along each axis is replaced.
        directions = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)  # type: ignore[attr-defined]
        affine = np.eye(4)
        affine[:3, :3] = directions * np.array(spacing)
        with atomic(target) as temporary:
            nibabel.save(nibabel.Nifti1Image(hounsfield, affine), temporary)
        return relative
