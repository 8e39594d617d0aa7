"""A DICOM series as a volume: pick the series, order its slices along their normal, report what is not regular.

Position and orientation alone decide the order and the sides (PS3.3 C.7.6.2.1.1); file names and instance numbers do
not. Uncompressed slices are read straight from their place in the file into the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from medmvl.errors import ImagingError
from medmvl.imaging.dicom import understanding
from medmvl.imaging.dicom_headers import Slice
from medmvl.imaging.dicom_pixels import load_slices
from medmvl.imaging.dicom_scan import Scan, Series, choose_series, scan
from medmvl.imaging.limits import check_bytes
from medmvl.imaging.orientation import AXIAL, obliquity
from medmvl.imaging.units import decide_units
from medmvl.imaging.volume import Units, Volume, check_finite, check_spacing

Gaps = Literal["refuse", "fill", "keep"]

#: positions closer than this (mm) are the same place
SAME_PLACE = 1e-3
#: a step that differs from the usual one by more than this share of it is irregular
IRREGULAR = 0.05
#: a step is that of missing slices if it is so close to a multiple of the usual one, in usual steps
WHOLE_STEPS = 0.1
#: degrees between the stacking direction and the slice normal, from which a gantry tilt is reported
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
        series: UID, end of a UID, "largest", "thinnest", "axial", "coronal" or "sagittal"; needed where several series
            are volumes.
        gaps: what to do about missing slices and irregular steps: "refuse", "fill" or "keep".

    Raises:
        ImagingError: nothing readable, several series, mixed orientations, missing slices, two slices at one place.
    """
    if gaps not in ("refuse", "fill", "keep"):
        raise ImagingError(f"gaps={gaps!r} is not known. Use 'refuse', 'fill' or 'keep'.")
    found = scan(path)
    chosen = choose_series(found, series, path)
    history = [f"read DICOM series {chosen.describe()}", *found.left_out]
    strays = _strays(chosen, found)
    slices, positions = _ordered(chosen, path, history)
    targets, warnings = _regular(positions, gaps, path, history)
    check_bytes(chosen.voxel_count * 4, path, max_bytes)
    with understanding(path):
        array = load_slices(slices, chosen, path, history)
    warnings += [*strays, *_straight(slices, positions, gaps, path)]
    if targets is not None:
        array = _interpolate(array, positions, targets)
        positions = targets
    try:
        check_finite(array)
    except ImagingError as error:
        raise ImagingError(f"{path}: {error}") from None
    affine, tilt = _affine(slices, positions)
    if tilt > TILTED:
        warnings.append(f"gantry tilt of {tilt:.1f} degrees: slices are sheared, not squared, against their stack")
    elif obliquity(affine) > 1:
        warnings.append(f"oblique by {obliquity(affine):.1f} degrees to the patient axes")
    if units is None and chosen.is_hu:
        decided, reason = "HU", "CT with rescale: Hounsfield units"
    elif units is None and chosen.modality != "CT":
        decided, reason = "arbitrary", f"modality {chosen.modality}: arbitrary units"
    else:
        decided, reason = decide_units(array, units, path)
    volume = Volume(
        array,
        decided,  # type: ignore[arg-type]
        affine,
        history=(*history, reason),
        warnings=tuple(warnings),
        source="dicom series",
    ).to_orientation(AXIAL)
    if spacing is not None:
        return volume.with_spacing(spacing)
    try:
        check_spacing(volume.spacing or (0, 0, 0))
    except ImagingError as error:
        raise ImagingError(f"{path}: {error}") from None
    return volume


def _strays(chosen: Series, found: Scan) -> list[str]:
    """Warn of slices of the same series UID that do not belong to the volume."""
    count = sum(len(other.slices) for other in found.series if other is not chosen and other.uid == chosen.uid)
    if not count:
        return []
    return [f"{count} slice(s) of the series with another orientation, matrix or spacing left out"]


def _ordered(series: Series, path: Path, history: list[str]) -> tuple[list[Slice], np.ndarray]:
    """Slices by position along their normal (mm), equal copies of a slice dropped."""
    normal = series.slices[0].normal
    places = np.array([float(np.dot(s.position, normal)) for s in series.slices])
    order = np.argsort(places, kind="stable")
    slices = [series.slices[i] for i in order]
    kept: list[int] = []
    positions = places[order]
    dropped = 0
    for index, current in enumerate(slices):
        if kept and positions[index] - positions[kept[-1]] < SAME_PLACE:
            if current.uid != slices[kept[-1]].uid and current.digest() != slices[kept[-1]].digest():
                raise ImagingError(
                    f"{path} holds two different slices at position {positions[index]:.2f} mm of one series: "
                    "two scans, phases or echoes in one. Put each into a folder of its own."
                )
            dropped += 1
            continue
        kept.append(index)
    if dropped:
        history.append(f"{dropped} duplicate slices left out")
    if len(kept) < 2:
        raise ImagingError(
            f"{path} holds a single slice; a volume needs at least two. Give the folder of the whole series, or read "
            "it as an image."
        )
    return [slices[i] for i in kept], positions[kept]


def _straight(slices: list[Slice], positions: np.ndarray, gaps: Gaps, path: Path) -> list[str]:
    """Judge whether the slices lie on a line (a tilted gantry's do); one that is moved sideways would be read in place.

    Raises:
        ImagingError: if a slice lies more than a pixel off, unless it is asked to keep them as they are.
    """
    places = np.array([item.position for item in slices])
    share = (positions - positions[0]) / (positions[-1] - positions[0])
    off = np.linalg.norm(places - places[0] - share[:, None] * (places[-1] - places[0]), axis=1)
    worst = int(off.argmax())
    if off[worst] <= max(slices[0].spacing):
        return []
    found = f"the slices do not lie on a line: the one at {positions[worst]:.2f} mm is {off[worst]:.1f} mm off sideways"
    if gaps != "keep":
        raise ImagingError(
            f"{path}: {found}. Get the whole series, or read it with gaps='keep' (leave them as they are)."
        )
    return [f"{found}; left as they are"]


def _regular(positions: np.ndarray, gaps: Gaps, path: Path, history: list[str]) -> tuple[np.ndarray | None, list[str]]:
    """Judge the steps between slices.

    Returns:
        the regular positions to interpolate to (None: leave the slices as they are), and warnings.
    """
    steps = np.diff(positions)
    usual = float(np.median(steps))
    odd = np.abs(steps - usual) > IRREGULAR * usual
    if not odd.any():
        return None, []
    ratios = steps[odd] / usual
    missing = np.rint(ratios).astype(int) - 1
    whole = bool((missing > 0).all() and (np.abs(ratios - np.rint(ratios)) <= WHOLE_STEPS).all())
    where = ", ".join(f"{positions[i]:.2f} -> {positions[i + 1]:.2f}" for i in np.flatnonzero(odd)[:8])
    count = int(odd.sum())
    what = f"{missing.sum()} slice(s) are missing" if whole else "the slices are not evenly spaced"
    found = (
        f"{what}: the usual step is {usual:.3g} mm, {count} step(s) differ (mm: {where}{', ...' if count > 8 else ''})"
    )
    if gaps == "refuse":
        raise ImagingError(
            f"{path}: {found}. Get the whole series, or read it with gaps='fill' (interpolate between neighbours) or "
            "gaps='keep' (take the slices as if they were regular)."
        )
    if gaps == "keep":
        return None, [found + "; taken as if regular"]
    number = round((positions[-1] - positions[0]) / usual) + 1
    history.append(f"interpolated along the stack to {number} regular slices")
    return np.linspace(positions[0], positions[-1], number), [found + "; filled by interpolation"]


def _interpolate(array: np.ndarray, positions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Linear interpolation of (D, H, W) slices at `positions` to `targets`; integers are rounded."""
    high = np.clip(np.searchsorted(positions, targets), 1, len(positions) - 1)
    weights = (targets - positions[high - 1]) / (positions[high] - positions[high - 1])
    out = np.empty((len(targets), *array.shape[1:]), dtype=array.dtype)
    for plane, upper, weight in zip(out, high, np.clip(weights, 0, 1), strict=True):
        mixed = array[upper - 1] * (1 - weight) + array[upper] * weight
        plane[...] = np.rint(mixed) if array.dtype.kind in "iu" else mixed
    return out


def _affine(slices: list[Slice], positions: np.ndarray) -> tuple[np.ndarray, float]:
    """Affine of the (slice, row, column) array to RAS+ mm, and the angle in degrees between stack and normal."""
    first, last = slices[0], slices[-1]
    stack = (np.asarray(last.position) - np.asarray(first.position)) / (len(positions) - 1)
    lps = np.eye(4)
    lps[:3, 0] = stack
    lps[:3, 1] = np.asarray(first.orientation[3:]) * first.spacing[0]  # down the rows
    lps[:3, 2] = np.asarray(first.orientation[:3]) * first.spacing[1]  # along the columns
    lps[:3, 3] = first.position
    cosine = float(np.dot(stack, first.normal) / np.linalg.norm(stack))
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
