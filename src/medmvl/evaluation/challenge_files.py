"""Files of the CT challenges: tables of CT-RATE, and masks of ReXGroundingCT."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from medmvl.data.tables import iter_table
from medmvl.errors import EvaluationError, MedMVLError
from medmvl.evaluation.grounding import Mask, grounding_scores, mask_of_heat_map
from medmvl.evaluation.vlm3d import CT_RATE_FINDINGS, Table, image_name
from medmvl.files import PathLike, existing_file, existing_folder
from medmvl.imaging.limits import check_bytes
from medmvl.progress_bar import track

_NAME = "VolumeName"
_PARTS = ("Findings_EN", "Impressions_EN")
#: Bytes of a voxel at most, after the header's slope.
_VALUE_BYTES = 8
_SUFFIXES = (".nii.gz", ".nii")


def read_label_table(path: PathLike) -> Table:
    """Return image name -> {finding: 0 or 1} of a CT-RATE table of labels.

    Raises:
        DataError: if the table cannot be read, or lacks a column.
        EvaluationError: if a label is neither 0 nor 1, naming the volume.
    """
    table: Table = {}
    for row in iter_table(existing_file(path, "table of labels"), [_NAME, *CT_RATE_FINDINGS]):
        values = {finding: str(row[finding]).strip() for finding in CT_RATE_FINDINGS}
        wrong = next(
            (f"{name} is {value!r}" for name, value in values.items() if value not in ("0", "1", "0.0", "1.0")), ""
        )
        if wrong:
            raise EvaluationError(f"{path}, {row[_NAME]}: {wrong}. A label must be 0 or 1.")
        table[image_name(str(row[_NAME]))] = {name: float(value) for name, value in values.items()}
    return table


def read_report_table(path: PathLike) -> dict[str, str]:
    """Return image name -> report ("Findings ... Impression ...", joined by a blank) of a CT-RATE table of reports.

    Raises:
        DataError: if the table cannot be read, or lacks a column.
    """
    rows = iter_table(existing_file(path, "table of reports"), [_NAME, *_PARTS])
    return {
        image_name(str(row[_NAME])): " ".join(str(row[part] or "").strip() for part in _PARTS).strip() for row in rows
    }


def read_names(path: PathLike) -> list[str]:
    """Return the names in a text file, one a line.

    Raises:
        DataError: if it is missing.
        EvaluationError: if it is no text.
    """
    try:
        return existing_file(path, "list of volumes").read_text(encoding="utf-8").split()
    except UnicodeDecodeError:
        raise EvaluationError(f"{path} is not UTF-8 text. Write a name a line.") from None


def score_masks(predictions: PathLike, references: PathLike, *, heat_threshold: float = 0.5) -> dict[str, float]:
    """Return the ReXGroundingCT metrics of a folder of masks; see `medmvl.evaluation.grounding.grounding_scores`.

    Both folders hold a NIfTI file per volume with the same name: 3D for one finding, or 4D with the findings on the first or the
    last axis. A prediction of floating-point numbers is a heat map; its voxels from a share of its maximum on are the mask.

    Args:
        heat_threshold: that share.

    Raises:
        EvaluationError: if a file is missing or not readable, or two files do not fit each other.
    """
    cases: list[tuple[Mask, Mask]] = []
    ours = existing_folder(predictions, "folder of predicted masks")
    files = sorted(
        file for file in existing_folder(references, "folder of masks").iterdir() if file.name.endswith(_SUFFIXES)
    )
    if not files:
        raise EvaluationError(f"{references} holds no mask. Wanted are files of NIfTI, such as valid_1_a_1.nii.gz.")
    for file in track(files, "masks"):
        if not (ours / file.name).is_file():
            raise EvaluationError(f"{ours} holds no mask {file.name}. Write a mask for each of {len(files)} volumes.")
        predicted, wanted = _load(ours / file.name), _load(file)
        if predicted.shape != wanted.shape:
            raise EvaluationError(
                f"{file.name}: the prediction has the shape {predicted.shape}, the reference {wanted.shape}. Give them one grid."
            )
        cases += zip(_masks(predicted, heat_threshold), _masks(wanted, heat_threshold), strict=True)
    return grounding_scores(cases)


def _load(file: Path) -> NDArray[Any]:
    """Return the array of a mask file, (I, J, K) or 4D.

    Raises:
        EvaluationError: if it cannot be read, or holds something else than finite real numbers.
        ImagingError: if it is larger than `MEDMVL_MAX_BYTES`.
    """
    try:
        opened: Any = nibabel.load(existing_file(file, "mask"))
        check_bytes(math.prod(opened.shape) * _VALUE_BYTES, file)
        if opened.get_data_dtype().kind not in "biuf":
            raise EvaluationError(f"{file} holds {opened.get_data_dtype()}; a mask holds real numbers.")
        values: NDArray[Any] = np.asanyarray(opened.dataobj)
    except MedMVLError:
        raise
    except Exception as error:  # what nibabel and zlib raise for damaged files is not one family
        raise EvaluationError(f"{file} is not a readable NIfTI file ({type(error).__name__}).") from error
    if values.ndim not in (3, 4):
        raise EvaluationError(f"{file}: a mask must have 3 or 4 axes, not {values.ndim}.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise EvaluationError(f"{file} holds NaN or infinite values. Write 0 where nothing was found.")
    return values


def _masks(values: NDArray[Any], heat_threshold: float) -> list[Mask]:
    """Return the (I, J, K) mask of each finding; the axis of findings of a 4D array is the shorter one of first and last."""
    if values.ndim == 4:
        axis = 0 if values.shape[0] < values.shape[-1] else -1
        return [_mask(part, heat_threshold) for part in np.moveaxis(values, axis, 0)]
    return [_mask(values, heat_threshold)]


def _mask(values: NDArray[Any], heat_threshold: float) -> Mask:
    if np.issubdtype(values.dtype, np.floating):  # zeros and ones give the same mask either way
        return mask_of_heat_map(values, heat_threshold)
    return values > 0
