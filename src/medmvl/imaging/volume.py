"""The `Volume` class: voxel values with units, spacing, patient orientation and processing history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from medmvl.errors import ImagingError
from medmvl.imaging.orientation import AXIAL, affine_of, code_of, reorient

Units = Literal["HU", "arbitrary"]

#: plausible voxel sizes in mm, from micro-CT to whole-body localizers
SPACING_LIMITS = (0.005, 60.0)


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """A 3D scan in memory (or memory-mapped), axes (D, H, W).

    Attributes:
        array: (D, H, W) int16 or another integer type, or float32; read-only by convention.
        units: "HU" (Hounsfield units) or "arbitrary".
        affine: (4, 4) float64, array index (d, h, w) -> patient RAS+ mm.
        sides_known: whether the file states the patient orientation; if not, `orientation` is an assumption.
        spacing_known: whether the file states the spacing.
        history: processing steps since the file, one sentence each.
        warnings: findings that may matter to the user (gantry tilt, filled gaps, assumed sides ...).
        source: kind of file ("dicom series", "nifti", "npy", ...), not its name.
    """

    array: np.ndarray
    units: Units
    affine: np.ndarray
    sides_known: bool = True
    spacing_known: bool = True
    history: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    source: str = field(default="array")

    def __post_init__(self) -> None:
        check_array(self.array)
        if self.units not in ("HU", "arbitrary"):
            raise ImagingError(f"Units {self.units!r} are not known. Use 'HU' or 'arbitrary'.")

    @classmethod
    def from_array(
        cls,
        array: np.ndarray,
        *,
        spacing: Sequence[float] | None = None,
        units: Units,
        orientation: str | None = None,
        source: str = "array",
        history: Sequence[str] = (),
    ) -> Volume:
        """Wrap an array that is already in memory.

        Args:
            array: (D, H, W), any real dtype.
            spacing: (z, y, x) mm along the array axes; None if unknown. Unknown spacing is drawn as 1 mm, and geometries
                that resample to a spacing refuse the volume.
            units: "HU" or "arbitrary".
            orientation: code of the array axes, e.g. "SPL"; None: unknown, assumed to be the axial view SPL.

        Raises:
            ImagingError: for another number of dimensions, an empty array, NaN or infinite values, absurd spacing.
        """
        array = np.asanyarray(array)
        check_array(array)
        steps = list(history)
        mm = check_spacing(spacing) if spacing is not None else (1.0, 1.0, 1.0)
        code = orientation if orientation is not None else AXIAL
        affine = affine_of(code, mm, array.shape)
        warnings = []
        if orientation is None:
            warnings.append(f"patient sides are not stated; the array is taken as the axial view {AXIAL}")
        return cls(
            array=array,
            units=units,
            affine=affine,
            sides_known=orientation is not None,
            spacing_known=spacing is not None,
            history=tuple(steps),
            warnings=tuple(warnings),
            source=source,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        depth, height, width = self.array.shape
        return depth, height, width

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """(z, y, x): mm per step along the array axes; None if unknown."""
        if not self.spacing_known:
            return None
        z, y, x = (float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))
        return z, y, x

    @property
    def orientation(self) -> str:
        """Sides towards which the array axes (D, H, W) grow, e.g. "SPL"."""
        return code_of(self.affine)

    def to_orientation(self, code: str) -> Volume:
        """Return the volume with its axes permuted and flipped to `code`; a view, nothing is interpolated."""
        if code == self.orientation:
            return self
        before = self.orientation
        array, affine = reorient(self.array, self.affine, code)
        return replace(self, array=array, affine=affine, history=(*self.history, f"reoriented {before} -> {code}"))

    def with_spacing(self, spacing: Sequence[float]) -> Volume:
        """Return the volume with the voxel sizes (z, y, x) mm that the caller declares for its axes."""
        mm = check_spacing(spacing)
        affine = self.affine.copy()
        affine[:3, :3] *= np.asarray(mm) / np.linalg.norm(affine[:3, :3], axis=0)
        note = f"spacing set to {mm} mm as declared"
        return replace(self, affine=affine, spacing_known=True, history=(*self.history, note))

    def to_axial(self, spacing: Sequence[float] | None = None) -> Volume:
        """Return the volume in the axial view SPL, with the declared spacing (z, y, x) mm if given.

        Raises:
            ImagingError: if the resulting spacing is implausible.
        """
        axial = self.to_orientation(AXIAL)
        if spacing is not None:
            return axial.with_spacing(spacing)
        if axial.spacing is not None:
            check_spacing(axial.spacing)
        return axial

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.array.shape))
        mm = "unknown spacing" if self.spacing is None else "x".join(f"{v:.3g}" for v in self.spacing) + " mm"
        sides = self.orientation + ("" if self.sides_known else " (assumed)")
        lines = [f"Volume({shape} {self.array.dtype}, {self.units}, {mm}, {sides}, from {self.source})"]
        lines += [f"  - {step}" for step in self.history]
        lines += [f"  ! {warning}" for warning in self.warnings]
        return "\n".join(lines)


def check_array(array: np.ndarray) -> None:
    """Raise an ImagingError unless `array` is a non-empty real (D, H, W) array.

    The values are not read, so wrapping a memory map is free; readers of floats call `check_finite`.
    """
    if array.ndim != 3:
        raise ImagingError(
            f"A volume has three axes (D, H, W); this array has shape {tuple(array.shape)}. "
            "Select one time point or channel first."
        )
    if 0 in array.shape:
        raise ImagingError(f"The volume is empty: shape {tuple(array.shape)}.")
    if array.dtype.kind not in "iufb":
        raise ImagingError(f"A volume holds real numbers; this array has dtype {array.dtype}.")


def check_finite(array: np.ndarray) -> None:
    """Raise an ImagingError with the count if `array` (D, H, W) contains NaN or infinite values."""
    if array.dtype.kind != "f":
        return
    bad = sum(int(plane.size - np.count_nonzero(np.isfinite(plane))) for plane in array)
    if bad:
        raise ImagingError(
            f"The volume holds {bad} NaN or infinite values of {array.size}. "
            "Repair it first, e.g. numpy.nan_to_num(array, nan=-1024) where they stand for air."
        )


def check_spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
    """Return the spacing (z, y, x) in mm as floats, or raise an ImagingError if it is implausible."""
    values = tuple(float(v) for v in spacing)
    low, high = SPACING_LIMITS
    if len(values) != 3 or not all(np.isfinite(v) and low <= v <= high for v in values):
        raise ImagingError(
            f"Spacing {values} mm cannot be right: three numbers (z, y, x) between {low} and {high} mm are wanted. "
            "If the header is wrong, give the true one with spacing=(z, y, x)."
        )
    return values[0], values[1], values[2]
