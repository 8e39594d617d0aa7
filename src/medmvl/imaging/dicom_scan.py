"""The series in a folder: which slices belong together, and which series is the volume that is meant."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medmvl.errors import ImagingError
from medmvl.imaging.dicom import number, understanding
from medmvl.imaging.dicom_headers import HeaderReader, Slice
from medmvl.imaging.dicom_image import functional_group

#: direction cosines that differ by less than this are the same direction (0.06 degrees)
_SAME_DIRECTION = 1e-3


@dataclass(frozen=True, eq=False)
class Series:
    """Slices of one series UID, matrix and orientation.

    Attributes:
        uid: series instance UID, with "#acquisition" behind where one UID holds several scans.
        is_hu: CT with a stated rescale to Hounsfield units.
        padding: (low, high) stored values that mean "no measurement here", or None.
    """

    uid: str
    modality: str
    rows: int
    columns: int
    is_hu: bool
    thickness: float
    padding: tuple[float, float] | None
    slices: tuple[Slice, ...]

    @property
    def voxel_count(self) -> int:
        """Number of voxels of the whole series."""
        return len(self.slices) * self.rows * self.columns

    def describe(self) -> str:
        """Say what the series is, without UID and description (they may identify a patient)."""
        size = f"{len(self.slices)} slices of {self.rows}x{self.columns}"
        return f"{self.modality} {self.plane}, {size}, {self.thickness:g} mm thick"

    @property
    def plane(self) -> str:
        """The anatomical plane that the slices are closest to."""
        return ("sagittal", "coronal", "axial")[int(np.abs(self.slices[0].normal).argmax())]


@dataclass(frozen=True)
class Scan:
    """What lies in a folder.

    Attributes:
        series: those with at least one positioned slice, largest first.
        left_out: one sentence per kind of file left out.
        damaged: images that are not whole, what is wrong, and the series UIDs they name ("" if not even that).
    """

    series: list[Series]
    left_out: list[str]
    damaged: list[tuple[Path, str, str]]


def list_series(path: Path | str) -> list[Series]:
    """Return the series in a DICOM folder (or file) that can be volumes, the largest first."""
    return scan(Path(path)).series


def scan(path: Path) -> Scan:
    """Read all headers below `path`."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    groups: dict[tuple[object, ...], list[tuple[Slice, Dataset]]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    damaged: list[tuple[Path, str, str]] = []
    reader = HeaderReader()
    for file in files:
        with understanding(file):
            header = reader.read(file)
            if header is not None and header.damaged:
                damaged.append((file, header.damaged, str(header.dataset.get("SeriesInstanceUID", ""))))
        if header is None or header.left_out:
            left_out["not DICOM" if header is None else str(header.left_out)] += 1
            continue
        for item in header.slices:
            if item is None:
                left_out["without position, orientation or usable spacing"] += 1
            else:
                groups[item.group].append((item, header.dataset))
    with understanding(path):
        series = [part for members in groups.values() for part in _series_of(members)]
    series.sort(key=lambda s: -len(s.slices))
    sentences = [f"left out: {count} file(s) or frame(s) {reason}" for reason, count in sorted(left_out.items())]
    return Scan(series, sentences, damaged)


def choose_series(found: Scan, wanted: str | None, path: Path) -> Series:
    """Return the series that is meant; files that are damaged and may belong to it are not passed over.

    Raises:
        ImagingError: listing the candidates, if there is none, or several and no rule or UID chooses one; naming a
            damaged file.
    """
    chosen = _choose(found.series, wanted, path, found.left_out)
    for file, fault, uid in found.damaged:
        if uid == "" or chosen.uid.startswith(uid):
            raise ImagingError(
                f"{file} {fault}, and it may belong to the series. Get it again, or take it out of the folder."
            )
    return chosen


def _choose(found: list[Series], wanted: str | None, path: Path, left_out: list[str]) -> Series:
    if not found:
        detail = f" ({'; '.join(left_out)})" if left_out else ""
        raise ImagingError(f"{path} holds no DICOM slices that make a volume{detail}.")
    candidates = [series for series in found if len(series.slices) > 1] or found
    if wanted is None and len(candidates) == 1:
        return candidates[0]
    if wanted in ("largest", "thinnest"):
        keys = [len(s.slices) if wanted == "largest" else -s.thickness for s in candidates]
        best = [series for series, key in zip(candidates, keys, strict=True) if key == max(keys)]
    elif wanted in ("axial", "coronal", "sagittal"):
        best = [series for series in candidates if series.plane == wanted]
    elif wanted is not None:
        best = [series for series in found if series.uid == wanted] or [s for s in found if s.uid.endswith(wanted)]
    else:
        best = candidates
    if len(best) == 1:
        return best[0]
    listing = "; ".join(f"...{series.uid[-12:]}: {series.describe()}" for series in candidates)
    why = "holds several series" if wanted is None else f"has {len(best)} series that match series={wanted!r}"
    if len({series.uid for series in candidates}) == 1:
        why = "holds one series of mixed orientations, matrices or spacings"
    raise ImagingError(
        f"{path} {why}: {listing}. Choose with series=<UID or its end>, 'largest', 'thinnest', 'axial', 'coronal' or "
        "'sagittal'; or put the one that is meant into a folder of its own."
    )


def _series_of(members: list[tuple[Slice, Dataset]]) -> list[Series]:
    """One Series per orientation, and per acquisition where acquisitions lie on top of each other."""
    return [series for group in _by_direction(members) for series in _by_acquisition(group)]


def _by_direction(members: list[tuple[Slice, Dataset]]) -> list[list[tuple[Slice, Dataset]]]:
    groups: list[list[tuple[Slice, Dataset]]] = []
    for member in members:
        for group in groups:
            one, other = group[0][0].orientation, member[0].orientation
            if one is other or np.abs(np.subtract(one, other)).max() < _SAME_DIRECTION:
                group.append(member)
                break
        else:
            groups.append([member])
    return groups


def _by_acquisition(members: list[tuple[Slice, Dataset]]) -> list[Series]:
    acquisitions = {item.acquisition for item, _ in members}
    if len(acquisitions) > 1:
        normal = members[0][0].normal
        places = {round(float(np.dot(item.position, normal)), 2) for item, _ in members}
        if len(places) < len(members):
            parts = {a: [m for m in members if m[0].acquisition == a] for a in sorted(acquisitions)}
            return [_one_series(group, f"#{a}") for a, group in parts.items()]
    return [_one_series(members, "")]


def _one_series(members: list[tuple[Slice, Dataset]], suffix: str) -> Series:
    dataset = members[0][1]
    groups = functional_group(dataset, 0, "PixelValueTransformationSequence") or dataset
    measures = functional_group(dataset, 0, "PixelMeasuresSequence") or dataset
    modality = str(dataset.get("Modality", "") or "unknown modality")
    stated = groups.get("RescaleIntercept") not in (None, "")
    padding = dataset.get("PixelPaddingValue")
    limit = dataset.get("PixelPaddingRangeLimit", padding)
    return Series(
        uid=str(dataset.get("SeriesInstanceUID", "")) + suffix,
        modality=modality,
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        is_hu=modality == "CT" and stated and str(groups.get("RescaleType", "HU") or "HU") in ("HU", "HU_MOD"),
        thickness=number(measures.get("SliceThickness"), 0.0),
        padding=None if padding in (None, "") else tuple(sorted((float(padding), float(limit)))),  # type: ignore[arg-type]
        slices=tuple(item for item, _ in members),
    )
