"""Geometry of a stack of slices: order, regular steps, missing slices, affine and gantry tilt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from medmvl.errors import ImagingError, counted
from medmvl.imaging.dicom.dataset import MalformedError, decimal, open_dicom
from medmvl.imaging.dicom.headers import Slice
from medmvl.imaging.dicom.scan import Series

Gaps = Literal["refuse", "fill", "keep"]

#: positions closer than this (mm) are the same
SAME_POSITION = 1e-3
#: a step that differs from the median step by more than this fraction of it is irregular
IRREGULAR = 0.05
#: a step means missing slices if it is this close to a multiple of the median step, in median steps
WHOLE_STEPS = 0.1
#: irregular steps that a message names
_NAMED_STEPS = 4


def order_slices(series: Series, path: Path, history: list[str]) -> tuple[list[Slice], np.ndarray]:
    """Return the slices in the order of their positions along the normal, and the positions (D,) in mm.

    Equal copies of a slice are dropped.

    Raises:
        ImagingError: if two different slices share a position, or there is only one slice.
    """
    normal = series.slices[0].normal
    positions = np.array([float(np.dot(s.position, normal)) for s in series.slices])
    order = np.argsort(positions, kind="stable")
    slices, positions = [series.slices[i] for i in order], positions[order]
    kept: list[int] = []
    dropped = 0
    for index, current in enumerate(slices):
        if kept and positions[index] - positions[kept[-1]] < SAME_POSITION:
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


def with_declared_spacing(
    slices: list[Slice], positions: np.ndarray, spacing: Sequence[float] | None, path: Path
) -> list[Slice]:
    """Return slices that state no spacing with the one that the caller declares.

    Args:
        positions: (D,) mm along the normal.
        spacing: (z, y, x) mm in the patient, or None.

    Raises:
        ImagingError: if `spacing` is None.
    """
    row, column = slices[0].orientation[:3], slices[0].orientation[3:]
    axes = {
        name: "xyz"[int(np.abs(v).argmax())]
        for name, v in (("along", row), ("down", column), ("stack", slices[0].normal))
    }
    if spacing is None:
        names = {axis: axis for axis in "zyx"} | {axes["stack"]: f"{float(np.median(np.diff(positions))):.4g}"}
        raise ImagingError(
            f"{path}: its {len(slices)} slices have positions but no usable PixelSpacing. Get the series with it, or give "
            f"the true one in mm with spacing=({names['z']}, {names['y']}, {names['x']}); {axes['stack']} follows from the "
            "positions."
        )
    mm = dict(zip("zyx", spacing, strict=True))
    return [replace(item, spacing=(mm[axes["down"]], mm[axes["along"]])) for item in slices]


def check_straight(slices: list[Slice], positions: np.ndarray, gaps: Gaps, path: Path) -> list[str]:
    """Return a warning if a slice is shifted sideways; those of a tilted gantry are not.

    Args:
        positions: (D,) mm along the normal.

    Raises:
        ImagingError: if a slice is more than a pixel off the line through the first and last one, unless `gaps` is
            "keep".
    """
    points = np.array([item.position for item in slices])
    share = (positions - positions[0]) / (positions[-1] - positions[0])
    off = np.linalg.norm(points - points[0] - share[:, None] * (points[-1] - points[0]), axis=1)
    worst = int(off.argmax())
    assert slices[0].spacing is not None  # stated or declared
    if off[worst] <= max(slices[0].spacing):
        return []
    found = f"the slices do not lie on a line: the one at {positions[worst]:.2f} mm is {off[worst]:.1f} mm off sideways"
    if gaps != "keep":
        raise ImagingError(
            f"{path}: {found}. Get the whole series, or read it with gaps='keep' (leave them as they are)."
        )
    return [f"{found}; left as they are"]


def check_steps(
    slices: list[Slice], positions: np.ndarray, gaps: Gaps, path: Path, history: list[str]
) -> tuple[np.ndarray | None, list[str]]:
    """Check the steps between slices.

    Args:
        slices: in the order of their positions.
        positions: (D,) mm along the normal.

    Returns:
        the regular positions to interpolate to (None: leave the slices as they are), and warnings.

    Raises:
        ImagingError: if slices are missing or the steps are irregular and `gaps` is "refuse".
    """
    steps = np.diff(positions)
    usual = float(np.median(steps))
    odd = np.abs(steps - usual) > IRREGULAR * usual
    if not odd.any():
        return None, []
    ratios = steps[odd] / usual
    missing = np.rint(ratios).astype(int) - 1
    multiples = bool((missing > 0).all() and (np.abs(ratios - np.rint(ratios)) <= WHOLE_STEPS).all())
    lacking = counted(int(missing.sum()), "slice is missing", "slices are missing")
    what = lacking if multiples else "the slices are not evenly spaced"

    def found(whole_paths: bool) -> str:
        return f"{what}: {_odd_steps(slices, positions, odd, None if whole_paths else path)}"

    if gaps == "refuse":
        raise ImagingError(
            f"{path}: {found(whole_paths=True)}. Get the whole series, or read it with gaps='fill' (interpolate between "
            "neighbors) or gaps='keep' (take the slices as if they were regular)."
        )
    if gaps == "keep":
        return None, [found(whole_paths=False) + "; taken as if regular"]
    number = round((positions[-1] - positions[0]) / usual) + 1
    history.append(f"interpolated along the stack to {number} regular slices")
    return np.linspace(positions[0], positions[-1], number), [found(whole_paths=False) + "; filled by interpolation"]


def _odd_steps(slices: list[Slice], positions: np.ndarray, odd: np.ndarray, root: Path | None) -> str:
    """Return the irregular steps with the files on both sides of each.

    Args:
        positions: (D,) mm along the normal.
        odd: (D - 1,) whether the step behind a slice is irregular.
        root: folder that files are named from; None: whole paths, as in error messages (see `Scan.names`).
    """
    steps, places = np.diff(positions), np.flatnonzero(odd)
    named = [
        f"{steps[i]:.3g} mm between {_name(slices[i], root)} and {_name(slices[i + 1], root)} (at {positions[i]:.2f} -> "
        f"{positions[i + 1]:.2f} mm)"
        for i in places[:_NAMED_STEPS]
    ]
    more = f", and {counted(len(places) - len(named), 'more such step')}" if len(places) > len(named) else ""
    return f"the usual step is {np.median(steps):.3g} mm, but it is {', '.join(named)}{more}"


def _name(item: Slice, root: Path | None) -> str:
    """Return the file of a slice with its frame or its instance number, by which a PACS lists it."""
    inside = root is not None and item.path != root
    file = str(item.path.relative_to(root)) if root is not None and inside else str(item.path)
    if item.frame is not None:
        return f"frame {item.frame + 1}" if item.path == root else f"frame {item.frame + 1} of {file}"
    try:
        number = decimal(
            open_dicom(item.path, stop_before_pixels=True, specific_tags=["InstanceNumber"]), "InstanceNumber"
        )
    except (ImagingError, MalformedError):  # it only helps to find the file
        number = None
    return file if number is None else f"{file} (instance {number:g})"


def interpolate_slices(array: np.ndarray, positions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return (T, H, W) slices at `targets` (T,), interpolated from `array` (D, H, W) at `positions` (D,); integers are rounded."""
    high = np.clip(np.searchsorted(positions, targets), 1, len(positions) - 1)
    weights = (targets - positions[high - 1]) / (positions[high] - positions[high - 1])
    out = np.empty((len(targets), *array.shape[1:]), dtype=array.dtype)
    for plane, upper, weight in zip(out, high, np.clip(weights, 0, 1), strict=True):
        mixed = array[upper - 1] * (1 - weight) + array[upper] * weight
        plane[...] = np.rint(mixed) if array.dtype.kind in "iu" else mixed
    return out


def stack_affine(slices: list[Slice], positions: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the affine (4, 4) of the (slice, row, column) array to RAS+ mm, and the gantry tilt in degrees.

    Args:
        positions: (D,) mm along the normal.
    """
    first, last = slices[0], slices[-1]
    stack = (np.asarray(last.position) - np.asarray(first.position)) / (len(positions) - 1)
    assert first.spacing is not None  # stated or declared
    lps = np.eye(4)
    lps[:3, 0] = stack
    lps[:3, 1] = np.asarray(first.orientation[3:]) * first.spacing[0]  # down the rows
    lps[:3, 2] = np.asarray(first.orientation[:3]) * first.spacing[1]  # along the columns
    lps[:3, 3] = first.position
    cosine = float(np.dot(stack, first.normal) / np.linalg.norm(stack))
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
