"""Reading of a DICOM series as a volume.

Position and orientation alone decide the order and the sides (PS3.3 C.7.6.2.1.1); file names and instance numbers do
not. Uncompressed slices are read directly from their offset in the file into the volume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medmvl.errors import ImagingError, counted, naming
from medmvl.imaging.dicom.headers import Slice
from medmvl.imaging.dicom.pixels import Loaded, load_slices
from medmvl.imaging.dicom.scan import Scan, Series, choose_series, same_direction, scan
from medmvl.imaging.dicom.stack import (
    WHOLE_STEPS,
    Gaps,
    check_steps,
    check_straight,
    interpolate_slices,
    order_slices,
    stack_affine,
    with_declared_spacing,
)
from medmvl.imaging.dicom.values import PADDED_HU
from medmvl.imaging.limits import check_bytes
from medmvl.imaging.orientation import obliquity
from medmvl.imaging.rescale import NEGATIVE_SLOPE
from medmvl.imaging.units import decide_units, doubt_hounsfield
from medmvl.imaging.volume import Units, Volume, check_finite

#: degrees between the stacking direction and the slice normal from which a gantry tilt is reported
TILTED = 0.5


def read_dicom_volume(
    path: Path,
    *,
    units: Units | None = None,
    spacing: Sequence[float] | None = None,
    series: str | None = None,
    gaps: Gaps = "refuse",
    max_bytes: int | None = None,
) -> Volume:
    """Read a folder with DICOM files, or one multi-frame file, into the standard axial view SPL.

    Args:
        units: declared units; None: Hounsfield units if every slice is a CT with a rescale to them and the values are
            plausible.
        spacing: (z, y, x) mm, instead of the file's.
        series: UID, end of a UID, "largest", "thinnest", "axial", "coronal" or "sagittal"; needed if several series are
            volumes.
        gaps: what to do about missing slices and irregular steps: "refuse", "fill" or "keep".
        max_bytes: limit of the decoded size.

    Raises:
        ImagingError: if nothing is readable, several series match, orientations are mixed, slices are missing, two
            slices share a position, or slices disagree about units.
    """
    if gaps not in ("refuse", "fill", "keep"):
        raise ImagingError(f"gaps={gaps!r} is not known. Use 'refuse', 'fill' or 'keep'.")
    found = scan(path)
    chosen = choose_series(found, series, path)
    _check_alike(chosen)
    history = [f"read DICOM series {chosen.describe()}", *found.sentences()]
    warnings = _unused_series(chosen, found, path, explicit=series is not None)
    slices, positions = order_slices(chosen, path, history)
    if not chosen.states_spacing:
        slices = with_declared_spacing(slices, positions, spacing, path)
    targets, irregular = check_steps(slices, positions, gaps, path, history)
    check_bytes(chosen.voxel_count * 4, path, max_bytes)
    loaded = load_slices(slices, chosen)
    warnings += [*irregular, *check_straight(slices, positions, gaps, path)]
    warnings += [*_findings(loaded, slices, found), *_doubts(slices, chosen)]
    history += _loading_history(loaded, slices)
    array = loaded.array
    if targets is not None:
        array, positions = interpolate_slices(array, positions, targets), targets
    with naming(path):
        check_finite(array)
    affine, tilt = stack_affine(slices, positions)
    if tilt > TILTED:
        warnings.append(f"gantry tilt of {tilt:.1f} degrees: slices are sheared, not squared, against their stack")
    elif obliquity(affine) > 1:
        warnings.append(f"oblique by {obliquity(affine):.1f} degrees to the patient axes")
    decided, reason = _units(array, units, chosen, path, warnings)
    with naming(path):
        return Volume(
            array, decided, affine, history=(*history, reason), warnings=tuple(warnings), source="dicom series"
        ).to_axial(spacing)


def _units(
    array: np.ndarray, declared: Units | None, series: Series, path: Path, warnings: list[str]
) -> tuple[Units, str]:
    """Return the units of the values and the reason; adds a warning if declared Hounsfield units are doubtful."""
    if declared is None and series.is_hu:
        doubt = doubt_hounsfield(array, path)
        warnings += [doubt] if doubt else []
        return "HU", "CT with rescale: Hounsfield units"
    if declared is None and any(item.values.rescale.is_other for item in series.slices):
        return "arbitrary", "rescale to other units than Hounsfield's"
    if declared is None and series.modality not in ("CT", "unknown modality"):
        return "arbitrary", f"modality {series.modality}: arbitrary units"
    return decide_units(array, declared, path)


def _check_alike(series: Series) -> None:
    """Raise if slices of one series disagree in modality, photometric interpretation or units."""
    kinds = Counter(item.values.kind for item in series.slices)
    if len(kinds) > 1:
        usual = kinds.most_common(1)[0][0]
        odd = next(item for item in series.slices if item.values.kind != usual)
        what = ("modality", "photometric interpretation", "whether a rescale is stated", "rescale type")
        differing = [name for name, one, other in zip(what, usual, odd.values.kind, strict=True) if one != other]
        raise ImagingError(
            f"{odd.path} differs from the other slices of its series in: {', '.join(differing)}. Get it again, or take "
            "it out of the folder."
        )
    first = series.slices[0]
    if first.values.rescale.has_table:
        raise ImagingError(
            f"{first.path} has a modality lookup table, which is not applied to volumes. Get the series "
            "with rescale slope and intercept, or use its slices as single images, for which the table is applied."
        )


def _unused_series(chosen: Series, found: Scan, path: Path, explicit: bool) -> list[str]:
    """Return warnings that name the slices of other series and of other orientations.

    Args:
        explicit: whether the caller named the series.

    Raises:
        ImagingError: if slices under another series UID continue the volume and the caller did not name the series.
    """
    warnings = []
    for other in found.series:
        if other is chosen:
            continue
        names = found.names(item.path for item in other.slices)
        if other.uid == chosen.uid:
            if not explicit and _continues(other, chosen, any_matrix=True):
                files = found.names((item.path for item in other.slices), paths=True)
                raise ImagingError(
                    f"{files} continues the volume but has another matrix or spacing than the other slices of its series. Get "
                    "it again, or read the others alone with series='largest'."
                )
            warnings.append(
                f"{counted(len(other.slices), 'slice')} of the series with another orientation, matrix or spacing left out: {names}"
            )
            continue
        continues = _continues(other, chosen)
        if continues and not explicit:
            files = found.names((item.path for item in other.slices), paths=True)
            raise ImagingError(
                f"{path}: {counted(len(other.slices), 'slice continues', 'slices continue')} the volume under another series "
                f"UID, as if sent again: {files}. Give all slices one UID, or read the others alone with "
                f"series={chosen.uid!r}."
            )
        note = " although they continue the volume" if continues else ""
        warnings.append(f"another series left out{note}: {other.describe()}: {names}")
    return warnings


def _continues(other: Series, chosen: Series, any_matrix: bool = False) -> bool:
    """Return whether the slices of another series fill gaps or extend the stack of the chosen one.

    Args:
        any_matrix: whether matrix and spacing may differ.
    """
    first = chosen.slices[0]
    if len(chosen.slices) < 2 or not same_direction(first, other.slices[0]):
        return False
    if first.group[1:] != other.slices[0].group[1:] and not any_matrix:
        return False
    if other.modality != chosen.modality or other.captured != chosen.captured:
        return False
    ordered = sorted(chosen.slices, key=lambda item: float(np.dot(item.position, first.normal)))
    steps = np.diff([float(np.dot(item.position, first.normal)) for item in ordered])
    usual = float(np.median(steps))
    if usual <= 0:
        return False
    start, end = np.asarray(ordered[0].position), np.asarray(ordered[-1].position)
    stack = (end - start) / (float(steps.sum()) / usual)
    for item in other.slices:
        offset = np.asarray(item.position) - start
        count = float(np.dot(offset, first.normal)) / usual
        aside = float(np.linalg.norm(offset - count * stack))
        inside = any(abs(float(np.dot(item.position, first.normal)) - float(np.dot(own.position, first.normal)))
                     < usual / 2 for own in ordered)  # fmt: skip
        near = -len(other.slices) - 0.5 < count < float(steps.sum()) / usual + len(other.slices) + 0.5
        if inside or not near or abs(count - round(count)) > WHOLE_STEPS or aside > max(first.spacing or (1.0,)):
            return False
    return True


def _findings(loaded: Loaded, slices: list[Slice], found: Scan) -> list[str]:
    """Return warnings about the loaded values and about positions that cannot be compared (PS3.3 C.7.4.1.1.1)."""
    warnings = [f"{note} in {counted(count, 'slice')}" for note, count in sorted(loaded.warnings.items())]
    references = len({item.reference for item in slices})
    if references > 1:
        warnings.append(f"the slices state {references} frames of reference: their positions may not fit together")
    if loaded.constant:
        warnings.append(
            f"{counted(len(loaded.constant), 'slice holds', 'slices hold')} a single value: {found.names(loaded.constant)}"
        )
    return warnings


def _doubts(slices: list[Slice], series: Series) -> list[str]:
    """Return warnings about what the headers state of the values."""
    warnings = []
    if any(item.values.rescale.slope < 0 for item in slices):
        warnings.append(NEGATIVE_SLOPE)
    if series.is_hu and len({(item.values.rescale.slope, item.values.rescale.intercept) for item in slices}) > 1:
        warnings.append("the slices of this CT state different rescales, which scanners hardly do: look at the values")
    if series.captured:
        warnings.append("the slices are secondary captures: their values need not be those of the scanner")
    if not series.is_hu and slices[0].values.photometric == "MONOCHROME1":
        warnings.append("MONOCHROME1: low values are white, and the volume has the values as they are stored")
    return warnings


def _loading_history(loaded: Loaded, slices: list[Slice]) -> list[str]:
    """Return what was done to the stored values."""
    rescales = {(item.values.rescale.slope, item.values.rescale.intercept) for item in slices}
    slope, intercept = next(iter(rescales))
    lines = [f"{note} in {counted(count, 'slice')}" for note, count in sorted(loaded.notes.items())]
    if len(rescales) > 1:
        lines.append(f"rescaled slice by slice ({len(rescales)} different slopes and intercepts)")
    elif slices[0].values.rescale.stated:
        lines.append(f"rescaled: value * {slope:g} + {intercept:g}")
    if loaded.padded:
        lines.append(f"padding of the file -> {PADDED_HU} HU in {loaded.padded} voxels")
    return lines
