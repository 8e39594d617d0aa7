"""Scan of a DICOM folder: grouping of slices into series, and choice of the series to read."""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medmvl.errors import DataError, ImagingError, counted, require_path
from medmvl.imaging.dicom.dataset import MalformedError, decimal, functional_group, translate_pydicom_errors
from medmvl.imaging.dicom.headers import Header, HeaderReader, Slice, sop_class
from medmvl.imaging.dicom.known_values import known_modality, known_uid
from medmvl.imaging.dicom.membership import damaged_slices, is_capture

#: direction cosines that differ by less than this are the same direction (0.06 degrees)
_SAME_DIRECTION = 1e-3
#: why files are left out that are no slices, and what users call such files
_UNPLACED = "without position or orientation"
_LIKE = {_UNPLACED: ", as radiographs are"}
#: most file names listed in one sentence
_MOST_NAMES = 50


@dataclass(frozen=True, eq=False)
class Series:
    """Slices of one series UID, matrix size, spacing and orientation.

    Attributes:
        uid: series instance UID, followed by "#acquisition" if one UID contains several scans.
        modality: defined term of Modality, or "unknown modality".
        rows, columns: matrix size.
        thickness: SliceThickness in mm, 0 if it is not stated.
        sop_class: SOP class UID of the first slice.
        captured: whether its slices are secondary captures.
        slices: the slices in the order of their files.
    """

    uid: str
    modality: str
    rows: int
    columns: int
    thickness: float
    sop_class: str
    captured: bool
    slices: tuple[Slice, ...]

    @property
    def is_hu(self) -> bool:
        """Whether every slice is a CT with a stated rescale to Hounsfield units."""
        return all(item.values.rescale.is_hu for item in self.slices)

    @property
    def states_spacing(self) -> bool:
        """Whether the slices state the spacing of their pixels; all or none do."""
        return self.slices[0].spacing is not None

    @property
    def voxel_count(self) -> int:
        """Number of voxels of the whole series."""
        return len(self.slices) * self.rows * self.columns

    @property
    def plane(self) -> str:
        """The anatomical plane closest to the slices."""
        return ("sagittal", "coronal", "axial")[int(np.abs(self.slices[0].normal).argmax())]

    def describe(self) -> str:
        """Return a description without UID and series description, which may identify a patient."""
        size = f"{len(self.slices)} slices of {self.rows}x{self.columns}"
        return f"{self.modality} {self.plane}, {size}, {self.thickness:g} mm thick"


@dataclass(frozen=True)
class Unplaced:
    """A file of which at least one frame has no position or orientation."""

    path: Path
    uid: str
    sop_class: str


@dataclass(frozen=True)
class Scan:
    """Contents of a folder.

    Attributes:
        root: the folder (or file) that was scanned.
        series: series with at least one positioned slice, the largest first.
        left_out: files that are not slices of a volume, by reason.
        damaged: images that cannot be used: file, reason, and the series UID they name ("" if none).
        unplaced: files with frames that have no position.
    """

    root: Path
    series: list[Series] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    damaged: list[tuple[Path, str, str]] = field(default_factory=list)
    unplaced: list[Unplaced] = field(default_factory=list)

    def sentences(self, paths: bool = False) -> list[str]:
        """Return a sentence for each reason why files were left out, which lists them as `names` does."""
        return [
            f"left out: {counted(len(files), 'file or frame', 'files or frames')} {reason}: {self.names(files, paths)}"
            for reason, files in sorted(self.left_out.items())
        ]

    def names(self, files: Iterable[Path], paths: bool = False) -> str:
        """Return the names of files, each once.

        Args:
            files: may contain a file several times.
            paths: whole paths, for error messages: jobs that store messages recognize paths and remove them. Else names
                relative to the folder.
        """
        unique = list(dict.fromkeys(files))
        shown = [
            str(file) if paths else str(file.relative_to(self.root)) if file != self.root else file.name
            for file in unique[:_MOST_NAMES]
        ]
        more = len(unique) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def list_series(path: Path | str) -> list[Series]:
    """Return the series of a DICOM folder (or file) that can be volumes, the largest first.

    Raises:
        ImagingError: if there is no such folder or file, or a DICOM file is truncated in its header.
    """
    try:
        place = Path(require_path(path, "DICOM folder"))
    except DataError as error:
        raise ImagingError(str(error)) from None
    if not place.exists():
        raise ImagingError(f"{place} does not exist.")
    return scan(place).series


def scan(path: Path) -> Scan:
    """Read the headers of all files below `path`.

    Raises:
        ImagingError: if a DICOM file is truncated in its header.
    """
    found = Scan(path)
    left_out: dict[str, list[Path]] = defaultdict(list)
    groups: dict[tuple[object, ...], list[tuple[Slice, Dataset]]] = defaultdict(list)
    foreign: list[Path] = []
    reader = HeaderReader(scans_only=not path.is_file())
    for file in [path] if path.is_file() else _files_below(path, left_out):
        with translate_pydicom_errors(file):
            header = reader.read(file)
            if header is None:
                foreign.append(file)
            else:
                _sort_in(header, file, found, groups, left_out)
    slices = [item.path for members in groups.values() for item, _ in members]
    found.damaged.extend((file, fault, "") for file, fault in damaged_slices(foreign, slices))
    if foreign:
        left_out["not DICOM"] += foreign
    with translate_pydicom_errors(path):
        found.series.extend(part for members in _without_captures(groups, left_out) for part in _series_of(members))
    found.series.sort(key=lambda s: -len(s.slices))
    found.left_out.update(left_out)
    return found


def _files_below(folder: Path, left_out: dict[str, list[Path]]) -> Iterator[Path]:
    """Yield the regular files below a folder in the order of their names; other things are noted, not opened."""
    for path in sorted(folder.rglob("*")):
        try:
            mode = path.stat().st_mode
        except OSError:
            left_out["that are broken links or cannot be read"].append(path)
            continue
        if stat.S_ISREG(mode):
            yield path
        elif not stat.S_ISDIR(mode):
            left_out["that are pipes, sockets or devices"].append(path)


def _sort_in(
    header: Header,
    file: Path,
    found: Scan,
    groups: dict[tuple[object, ...], list[tuple[Slice, Dataset]]],
    left_out: dict[str, list[Path]],
) -> None:
    """Add the slices of a file to their groups, or note why it has none."""
    uid = known_uid(header.dataset.get("SeriesInstanceUID"))
    if header.damaged:
        found.damaged.append((file, header.damaged, uid))
    if header.left_out:
        left_out[header.left_out].append(file)
        return
    for item in header.slices:
        if item is None:
            left_out[_UNPLACED].append(file)
            found.unplaced.append(Unplaced(file, uid, sop_class(header.dataset)))
        else:
            groups[item.group].append((item, header.dataset))


def _without_captures(
    groups: dict[tuple[object, ...], list[tuple[Slice, Dataset]]], left_out: dict[str, list[Path]]
) -> list[list[tuple[Slice, Dataset]]]:
    """Return the groups without the secondary captures of series that also contain slices of a scanner."""
    scanned = {group[0] for group, members in groups.items() for _, header in members if not is_capture(header)}
    kept = []
    for group, members in groups.items():
        if group[0] in scanned:
            captures = [item.path for item, header in members if is_capture(header)]
            if captures:
                left_out["that are secondary captures"] += captures
                members = [(item, header) for item, header in members if not is_capture(header)]
        kept.append(members)
    return [members for members in kept if members]


def choose_series(found: Scan, wanted: str | None, path: Path) -> Series:
    """Return the series to read.

    Raises:
        ImagingError: if there is no series; if there are several and neither a rule nor a UID selects one (lists the
            candidates); or if a file that may belong to the series cannot be used (names the file).
    """
    chosen = _choose(found, wanted, path)
    for file, fault, uid in found.damaged:
        if _base(chosen.uid).startswith(uid):  # a file cut inside its UID states the beginning of it
            raise ImagingError(
                f"{file} {fault}, and it may belong to the series. Get it again, or take it out of the folder."
            )
    for item in found.unplaced:
        if item.uid == _base(chosen.uid) and item.sop_class == chosen.sop_class:
            raise ImagingError(
                f"{item.path} belongs to the series but has no position or orientation. Get it again, or take it out of "
                "the folder."
            )
    for other in found.series:
        if _base(other.uid) == _base(chosen.uid) and other.states_spacing != chosen.states_spacing:
            odd = (chosen if other.states_spacing else other).slices[0]
            raise ImagingError(
                f"{odd.path} belongs to the series but has no usable PixelSpacing, which others have. Get it again, or "
                "take it out of the folder."
            )
    return chosen


def describe_choice(path: Path, wanted: str | None) -> tuple[str, list[str]]:
    """Return the description of the series that `read_dicom_volume` takes from a folder, and what it leaves out, without names.

    Args:
        path: the folder.
        wanted: the series that was asked for, as for `read_volume`.

    Raises:
        ImagingError: as for `choose_series`.
    """
    found = scan(path)
    chosen = choose_series(found, wanted, path)
    others = [f"another series ({series.describe()})" for series in found.series if series is not chosen]
    files = [
        f"{counted(len(dict.fromkeys(paths)), 'file')} {reason}{_LIKE.get(reason, '')}"
        for reason, paths in sorted(found.left_out.items())
    ]
    return chosen.describe(), others + files


def _base(uid: str) -> str:
    return uid.partition("#")[0]


def _choose(scanned: Scan, wanted: str | None, path: Path) -> Series:
    found = scanned.series
    if not found:
        details = [*scanned.sentences(paths=True), *(f"{file} {fault}" for file, fault, _ in scanned.damaged)]
        detail = f" ({'; '.join(details)})" if details else ""
        advice = " Radiographs and other single images are read one by one, as images." if scanned.unplaced else ""
        raise ImagingError(f"{path} holds no DICOM slices that make a volume{detail}.{advice}")
    candidates = [series for series in found if len(series.slices) > 1] or found
    candidates = [series for series in candidates if series.states_spacing] or candidates
    candidates = [series for series in candidates if not series.captured] or candidates
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
    """Return one Series per orientation, and per acquisition if acquisitions share positions."""
    return [series for group in _by_direction(members) for series in _by_acquisition(group)]


def _by_direction(members: list[tuple[Slice, Dataset]]) -> list[list[tuple[Slice, Dataset]]]:
    groups: list[list[tuple[Slice, Dataset]]] = []
    for member in members:
        for group in groups:
            if same_direction(group[0][0], member[0]):
                group.append(member)
                break
        else:
            groups.append([member])
    return groups


def same_direction(one: Slice, other: Slice) -> bool:
    """Return whether two slices have the same orientation."""
    if one.orientation is other.orientation:
        return True
    return bool(np.abs(np.subtract(one.orientation, other.orientation)).max() < _SAME_DIRECTION)


def _by_acquisition(members: list[tuple[Slice, Dataset]]) -> list[Series]:
    acquisitions = {item.acquisition for item, _ in members}
    if len(acquisitions) > 1:
        normal = members[0][0].normal
        positions = {round(float(np.dot(item.position, normal)), 2) for item, _ in members}
        if len(positions) < len(members):
            parts = {a: [m for m in members if m[0].acquisition == a] for a in sorted(acquisitions)}
            return [_one_series(group, f"#{a}") for a, group in parts.items()]
    return [_one_series(members, "")]


def _one_series(members: list[tuple[Slice, Dataset]], suffix: str) -> Series:
    dataset = members[0][1]
    measures = functional_group(dataset, 0, "PixelMeasuresSequence") or dataset
    try:
        thickness = decimal(measures, "SliceThickness") or 0.0
    except MalformedError:  # it is only shown and used to choose
        thickness = 0.0
    return Series(
        uid=known_uid(dataset.get("SeriesInstanceUID")) + suffix,
        modality=known_modality(dataset),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        thickness=thickness,
        sop_class=sop_class(dataset),
        captured=is_capture(dataset),
        slices=tuple(item for item, _ in members),
    )
