"""The patient's sides at the edges of a single DICOM image."""

from __future__ import annotations

import re

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from medmvl.imaging.dicom.dataset import floats, functional_group

Sides = tuple[str, str, str, str]

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "H": "F", "F": "H"}
#: DICOM says head and foot, volumes and viewers superior and inferior.
_SHOWN = str.maketrans("HF", "SI")


def sides_of(dataset: Dataset, index: int) -> Sides | None:
    """Return the sides at the left, right, top and bottom edge of frame `index` in letters of R/L, A/P, S/I.

    They come from PatientOrientation (PS3.3 C.7.6.1.1.1) or, in slices, from ImageOrientationPatient.

    Returns:
        None if neither is stated and valid, or both are and contradict each other.
    """
    stated, sliced = _stated(dataset), _of_slice(dataset, index)
    if stated and sliced and any(ours[0] != theirs[0] for ours, theirs in zip(stated, sliced, strict=True)):
        return None
    found = stated or sliced
    if found is None:
        return None
    right, bottom = found
    left, top = ("".join(_OPPOSITE[letter] for letter in side) for side in found)
    left, right, top, bottom = (side.translate(_SHOWN) for side in (left, right, top, bottom))
    return left, right, top, bottom


def _stated(dataset: Dataset) -> tuple[str, str] | None:
    """Return the directions of rows and columns that PatientOrientation states."""
    values = dataset.get("PatientOrientation")
    if not isinstance(values, MultiValue | list) or len(values) != 2:
        return None
    row, column = (str(value).strip() for value in values)
    if not all(re.fullmatch("[RLAPHF]{1,3}", side) and _is_direction(side) for side in (row, column)):
        return None
    return None if row[0] in (column[0], _OPPOSITE[column[0]]) else (row, column)


def _is_direction(side: str) -> bool:
    """Whether no axis of the patient occurs twice."""
    return all(letter not in (other, _OPPOSITE[other]) for place, letter in enumerate(side) for other in side[:place])


def _of_slice(dataset: Dataset, index: int) -> tuple[str, str] | None:
    """Return the directions of rows and columns by their largest components."""
    plane = functional_group(dataset, index, "PlaneOrientationSequence") or dataset
    cosines = floats(plane.get("ImageOrientationPatient"), 6)
    if cosines is None:
        return None
    row, column = np.reshape(cosines, (2, 3))
    first, second = int(np.abs(row).argmax()), int(np.abs(column).argmax())
    if first == second or abs(row[first]) < 0.5 or abs(column[second]) < 0.5:
        return None
    # LPS: the coordinates grow to the left, the back and the head.
    return "LPH"[first] if row[first] > 0 else "RAF"[first], "LPH"[second] if column[second] > 0 else "RAF"[second]
