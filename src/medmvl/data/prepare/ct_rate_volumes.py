"""The volumes of CT-RATE: from the names in its tables to the paths in the records."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nibabel
import numpy as np

from medmvl.data.prepare.base import Job
from medmvl.data.prepare.ct_rate_release import UNREADABLE, Release, Rescale
from medmvl.files import atomic

_SUFFIXES = (".nii.gz", ".npy", ".npz", ".nii")


class Volumes:
    """The volumes of one split.

    Args:
        job: the conversion.
        base: the folder that holds metadata/.
        split: "train" or "valid".
        release: what the volumes are.
        export: write all volumes below `out/volumes` (those that need it corrected, the others linked), because the
            paths of one conversion have one root.
    """

    def __init__(self, job: Job, base: Path, split: str, release: Release, *, export: bool) -> None:
        self._job, self._release, self._export = job, release, export
        self._excluded = _read_excluded(base / "metadata" / f"no_chest_{split}.txt")
        self._known: dict[str, str | None] = {}

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
        folder = self._release.folder / "_".join(parts[:2]) / "_".join(parts[:3])
        file = next((folder / f"{stem}{s}" for s in _SUFFIXES if (folder / f"{stem}{s}").is_file()), None)
        if file is None:
            ledger.fault("volume is missing", name)
            return None
        return self._place(file, stem) if self._export else file.relative_to(self._job.source).as_posix()

    def _place(self, file: Path, stem: str) -> str | None:
        """Bring the volume below `out/volumes`, in HU; return its path from `out`."""
        inside = Path("volumes") / self._release.folder.name / file.relative_to(self._release.folder)
        target = self._job.out / inside
        self._job.ledger.exported = True
        if target.is_file():
            return inside.as_posix()
        if self._release.kind == "ready" or file.suffix in (".npy", ".npz"):
            _link(file, target)
        elif stem not in self._release.rescale:
            self._job.ledger.fault("volume has no row in the metadata table", file.name)
            return None
        else:
            try:
                save_hounsfield(file, target, self._release.rescale[stem], keep_spacing=self._release.kind == "shifted")
            except UNREADABLE as error:
                self._job.ledger.fault(f"volume is not readable ({type(error).__name__})", file.name)
                return None
        return inside.as_posix()


def _link(file: Path, target: Path) -> None:
    """Make `file` appear as `target` without a second copy, where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        with atomic(target) as temporary:
            shutil.copyfile(file, temporary)


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
