"""The headers of DICOM files: which series are here, and which of them is the volume that is meant."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medmvl.errors import ImagingError
from medmvl.imaging.dicom import floats, frame_count, looks_like_dicom, number, open_dicom, understanding
from medmvl.imaging.dicom_image import functional_group

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "AcquisitionNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "NumberOfFrames", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
]  # fmt: skip

#: direction cosines that differ by less than this are the same direction
_SAME_DIRECTION = 1e-3


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice: where it lies in the patient, and where its pixels lie on disk.

    Attributes:
        path: its file.
        frame: index in a multi-frame file, else None.
        uid: SOP instance UID with the frame.
        position: (x, y, z) mm of the first pixel, LPS+.
        orientation: direction cosines of a row and of a column, six numbers.
        spacing: (between rows, between columns) mm.
        slope, intercept: of this slice.
        raw: (offset, dtype) of uncompressed pixels in the file, None where a decoder is needed.
        acquisition: AcquisitionNumber, to tell scans apart that share a series.
    """

    path: Path
    frame: int | None
    uid: str
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    slope: float
    intercept: float
    raw: tuple[int, str] | None
    acquisition: str

    @property
    def normal(self) -> np.ndarray:
        """Unit vector along which slices of this orientation are ordered."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    def digest(self) -> str:
        """Hash of the whole file: two copies of one slice under two names are the same."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest() + str(self.frame)


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


def list_series(path: Path | str) -> list[Series]:
    """Return the series in a DICOM folder (or file) that can be volumes, the largest first."""
    return scan(Path(path))[0]


def scan(path: Path) -> tuple[list[Series], list[str]]:
    """Read all headers below `path`.

    Returns:
        the series with at least one positioned slice, largest first; and one sentence per kind of file left out.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    groups: dict[tuple[object, ...], list[tuple[Slice, Dataset]]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    for file in files:
        with file.open("rb") as handle:
            is_dicom = looks_like_dicom(handle.read(132))
        if not is_dicom:
            left_out["not DICOM"] += 1
            continue
        with understanding(file):
            dataset, raw = _read_header(file)
            reason = _not_a_slice(dataset)
            if reason:
                left_out[reason] += 1
                continue
            for item in _slices_of(dataset, file, raw):
                if item is None:
                    left_out["without position, orientation or usable spacing"] += 1
                    continue
                groups[_group_key(dataset, item)].append((item, dataset))
    with understanding(path):
        series = [part for members in groups.values() for part in _series_of(members)]
    series.sort(key=lambda s: -len(s.slices))
    return series, [f"left out: {count} file(s) or frame(s) {reason}" for reason, count in sorted(left_out.items())]


def choose_series(found: list[Series], wanted: str | None, path: Path, left_out: list[str]) -> Series:
    """Return the series that is meant.

    Raises:
        ImagingError: listing the candidates, if there is none, or several and no rule or UID chooses one.
    """
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


def _read_header(path: Path) -> tuple[Dataset, tuple[int, str] | None]:
    """Everything before the pixels, and the place of the pixels if they can be taken from the file as they are."""
    with path.open("rb") as handle:
        dataset = open_dicom(handle, stop_before_pixels=True, specific_tags=_TAGS, label=path)
        start = handle.tell()
        head = handle.read(12)
    return dataset, _raw_pixels(dataset, start, head)


def _raw_pixels(dataset: Dataset, start: int, head: bytes) -> tuple[int, str] | None:
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    plain = int(dataset.get("BitsAllocated") or 0) == 16 and int(dataset.get("SamplesPerPixel") or 1) == 1
    if syntax not in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1") or not plain or frame_count(dataset) > 1:
        return None
    if head[:4] != b"\xe0\x7f\x10\x00":
        return None
    explicit = syntax == "1.2.840.10008.1.2.1"
    offset, length = (12, head[8:12]) if explicit else (8, head[4:8])
    if int.from_bytes(length, "little") < int(dataset.Rows) * int(dataset.Columns) * 2:
        return None
    return start + offset, "<i2" if int(dataset.get("PixelRepresentation") or 0) else "<u2"


def _not_a_slice(dataset: Dataset) -> str | None:
    """Why a file is no slice of a volume, or None."""
    image_type = [str(part).upper() for part in dataset.get("ImageType") or ()]
    if "LOCALIZER" in image_type:
        return "that are localizers"
    if not dataset.get("Rows") or not dataset.get("Columns"):
        return "without pixels (reports, dose sheets, directories ...)"
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        return "in colour"
    return None


def _slices_of(dataset: Dataset, path: Path, raw: tuple[int, str] | None) -> Iterator[Slice | None]:
    """Yield a Slice per frame, None for one that does not say where it lies."""
    frames = frame_count(dataset)
    enhanced = frames > 1 or "PerFrameFunctionalGroupsSequence" in dataset
    for index in range(frames):
        where, turned, measures, values = (
            (functional_group(dataset, index, name) or dataset) if enhanced else dataset
            for name in (
                "PlanePositionSequence",
                "PlaneOrientationSequence",
                "PixelMeasuresSequence",
                "PixelValueTransformationSequence",
            )
        )
        position = floats(where.get("ImagePositionPatient"), 3)
        orientation = floats(turned.get("ImageOrientationPatient"), 6)
        spacing = floats(measures.get("PixelSpacing"), 2)
        if position is None or orientation is None or spacing is None or min(spacing) <= 0:
            yield None
            continue
        if frames > 1 and where is dataset:  # one position for all frames: a film, not a stack
            yield None
            continue
        yield Slice(
            path=path,
            frame=index if enhanced else None,
            uid=f"{dataset.get('SOPInstanceUID', path.name)}#{index}",
            position=(position[0], position[1], position[2]),
            orientation=orientation,
            spacing=(spacing[0], spacing[1]),
            slope=number(values.get("RescaleSlope"), 1.0),
            intercept=number(values.get("RescaleIntercept"), 0.0),
            raw=None if enhanced else raw,
            acquisition=str(dataset.get("AcquisitionNumber", "")),
        )


def _group_key(dataset: Dataset, item: Slice) -> tuple[object, ...]:
    directions = tuple(np.round(np.asarray(item.orientation) / _SAME_DIRECTION / 5).astype(int))
    return (
        str(dataset.get("SeriesInstanceUID", "")),
        int(dataset.Rows),
        int(dataset.Columns),
        tuple(round(mm, 4) for mm in item.spacing),
        directions,
    )


def _series_of(members: list[tuple[Slice, Dataset]]) -> list[Series]:
    """One Series, or one per acquisition where acquisitions lie on top of each other."""
    parts: dict[str, list[tuple[Slice, Dataset]]] = {"": members}
    acquisitions = {item.acquisition for item, _ in members}
    if len(acquisitions) > 1 and len({_place(item) for item, _ in members}) < len(members):
        parts = {f"#{a}": [m for m in members if m[0].acquisition == a] for a in sorted(acquisitions)}
    return [_one_series(group, suffix) for suffix, group in parts.items()]


def _place(item: Slice) -> int:
    return round(float(np.dot(item.position, item.normal)) * 100)


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
