"""The volumes of CT-RATE: from the names in its tables to the paths in the records."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nibabel
import numpy as np

from medmvl.data.converters.converter import Job
from medmvl.data.converters.ct_rate_release import UNREADABLE, Release, Rescale
from medmvl.files import atomic
from medmvl.imaging.units import AIR_BELOW

#: HU. Lung and air are below.
_LUNG_BELOW = -300
#: share of voxels of lung and air from which a volume is in HU
_AIRED = 0.01
_SUFFIXES = (".nii.gz", ".npy", ".npz", ".nii")


class Volumes:
    """The volumes of one split.

    Args:
        job: the conversion.
        base: the folder that holds metadata/.
        split: "train" or "valid".
        release: folder, kind and rescale of the volumes.
        export: write all volumes below `out/volumes` (those that need it corrected, the others linked), because the
            paths of one conversion have one root.
    """

    def __init__(self, job: Job, base: Path, split: str, release: Release, *, export: bool) -> None:
        self._job, self._release, self._export = job, release, export
        self._excluded = _read_excluded(base / "metadata" / f"no_chest_{split}.txt")
        self._known: dict[str, str | None] = {}

    def path(self, name: str) -> str | None:
        """Return the path of a volume for a record; None, counted in the report, if it is excluded or missing."""
        if name not in self._known:
            self._known[name] = self._find(name)
        elif self._known[name] is None:
            self._job.report.skip("question about a volume that was dropped")
        return self._known[name]

    def _find(self, name: str) -> str | None:
        stem = name.split(".")[0]
        parts = stem.split("_")
        report = self._job.report
        if stem in self._excluded:
            report.skip("not a chest CT (no_chest list)")
            return None
        if len(parts) != 4:
            report.fault("volume name is not <split>_<patient>_<scan>_<reconstruction>", name)
            return None
        if self._job.options.reconstructions == "first" and parts[3] != "1":
            report.skip("further reconstruction of a scan")
            return None
        file = next((place for place in self._places(stem, parts) if place.is_file()), None)
        if file is None:
            report.fault("volume is missing", name)
            return None
        return self._place(file, stem) if self._export else file.relative_to(self._job.source).as_posix()

    def _places(self, stem: str, parts: list[str]) -> list[Path]:
        """Return where a volume may be: train_1/train_1_a/ in CT-RATE, train_1/train_1a/ in RadGenome-ChestCT, or flat."""
        patient = "_".join(parts[:2])
        folders = (Path(patient) / "_".join(parts[:3]), Path(patient) / f"{patient}{parts[2]}", Path())
        return [self._release.folder / folder / f"{stem}{suffix}" for folder in folders for suffix in _SUFFIXES]

    def _place(self, file: Path, stem: str) -> str | None:
        """Write the volume in HU below `out/volumes`; return its path relative to `out`."""
        inside = Path("volumes") / self._release.folder.name / file.relative_to(self._release.folder)
        target = self._job.out / inside
        self._job.report.exported = True
        if target.is_file():
            return inside.as_posix()
        if self._release.kind == "ready" or file.suffix in (".npy", ".npz"):
            _link(file, target)
        elif stem not in self._release.rescale:
            self._job.report.fault("volume has no row with slope and intercept in the metadata table", file.name)
            return None
        elif not self._write(file, target, self._release.rescale[stem]):
            return None
        return inside.as_posix()

    def _write(self, file: Path, target: Path, rescale: Rescale) -> bool:
        """Write a volume in HU, unless it is in HU already; return False after counting a fault."""
        report = self._job.report
        try:
            already = is_hounsfield(file, rescale)
            if already is None:
                report.fault("whether the volume is in HU already cannot be told from its values", file.name)
                return False
            if already:
                report.note("Volumes that were in HU already were used as they are, with the spacing of their headers.")
                _link(file, target)
            else:
                save_hounsfield(file, target, rescale, keep_spacing=self._release.kind == "shifted")
        except UNREADABLE as error:
            report.fault(f"volume is not readable ({type(error).__name__})", file.name)
            return False
        return True


def _link(file: Path, target: Path) -> None:
    """Hard-link `file` as `target`, or copy it where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        with atomic(target) as temporary:
            shutil.copyfile(file, temporary)


def is_hounsfield(file: Path, rescale: Rescale) -> bool | None:
    """Return whether a volume is in HU before its rescale; None if its values do not tell.

    Values of air and lung, apart from a constant padding, occur in HU only; and a rescale that leaves nothing above air was
    applied already.

    Raises:
        OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError: if the file is not readable.
    """
    if (rescale.slope, rescale.intercept) == (1.0, 0.0):
        return False
    stored = np.asanyarray(nibabel.load(file).dataobj)  # type: ignore[attr-defined]
    low, high = float(stored.min()), float(stored.max())
    if low >= AIR_BELOW:
        return max(low * rescale.slope, high * rescale.slope) + rescale.intercept < AIR_BELOW
    aired = np.count_nonzero((stored < _LUNG_BELOW) & (stored > low)) / stored.size
    return True if aired > _AIRED else None


def save_hounsfield(file: Path, target: Path, rescale: Rescale, *, keep_spacing: bool) -> None:
    """Write a NIfTI volume with its values turned into HU (int16) and, unless kept, the spacing of the table.

    Raises:
        OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError: if the file is not readable.
    """
    image = nibabel.load(file)
    stored = np.asanyarray(image.dataobj)  # type: ignore[attr-defined]
    values = np.rint(stored * np.float32(rescale.slope) + np.float32(rescale.intercept))
    affine = np.array(image.affine)  # type: ignore[attr-defined]
    if not keep_spacing:
        # The sides of the axes are kept from the header; only the step along each axis is replaced.
        affine[:3, :3] *= np.array(rescale.spacing) / np.linalg.norm(affine[:3, :3], axis=0)
    with atomic(target) as temporary:
        nibabel.save(nibabel.Nifti1Image(np.clip(values, -32768, 32767).astype(np.int16), affine), temporary)


def _read_excluded(file: Path) -> set[str]:
    """Return the stems that are no chest CT; a line may hold a whole path."""
    if not file.is_file():
        return set()
    lines = file.read_text(encoding="utf-8").split()
    return {line.replace("\\", "/").rsplit("/", 1)[-1].split(".")[0] for line in lines}
