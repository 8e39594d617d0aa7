"""Phantom CTs in the layout of CT-RATE: NIfTI volumes, report, label and metadata tables, and the vqa files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from medmvl.data.synthetic import write_note
from medmvl.errors import DataError
from medmvl.files import PathLike, atomic, write_json, write_text
from medmvl.phantoms import texts
from medmvl.phantoms.findings import CT_RATE_LABELS, FINDINGS
from medmvl.phantoms.phantom import Phantom
from medmvl.progress_bar import track

REPORT_COLUMNS = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
METADATA_COLUMNS = (
    *("VolumeName", "Manufacturer", "SeriesDescription", "PatientSex", "PatientAge", "Rows", "Columns"),
    *("XYSpacing", "RescaleIntercept", "RescaleSlope", "RescaleType", "NumberofSlices", "ZSpacing"),
)
_TABLES = {  # the data set mixes two names of its second split; so do we
    "train": ("train_reports", "train_predicted_labels", "train_metadata", "train_vqa"),
    "valid": ("validation_reports", "valid_predicted_labels", "validation_metadata", "valid_vqa"),
}


def save_nifti(path: PathLike, phantom: Phantom, *, hounsfield: bool = True) -> None:
    """Write the CT as NIfTI, axes (x, y, z), with an affine that states the patient's left correctly.

    With `hounsfield=False` the file is like CT-RATE's original release: values shifted by 1024 and a header whose
    spacing is not to be trusted; the truth is in the metadata table only.
    """
    depth, row, column = phantom.spacing
    stored = phantom.volume if hounsfield else phantom.volume + np.int16(1024)
    # NIfTI's world is RAS: our x (towards Left) and y (towards Posterior) run against its first two axes.
    affine = np.diag([-column, -row, depth, 1.0]) if hounsfield else np.diag([-1.0, -1.0, 1.0, 1.0])
    middle = (np.array(phantom.volume.shape[::-1]) - 1) / 2
    affine[:3, 3] = -affine[:3, :3] @ middle
    image = nibabel.Nifti1Image(np.ascontiguousarray(stored.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    with atomic(path) as temporary:
        nibabel.save(image, temporary)


def write_ct_rate(
    root: PathLike, splits: Mapping[str, Iterable[Phantom]], *, fixed: bool = True, reconstructions: int = 1
) -> Path:
    """Write `splits` (train, valid -> phantoms) below `root` as CT-RATE; return `root`.

    Args:
        root: the folder that will hold `dataset/`.
        splits: "train" and "valid" (also called "test" or "val"), each an iterable of phantoms; CT-RATE has two splits.
        fixed: write the corrected volumes (`train_fixed/`, in HU) rather than the original ones.
        reconstructions: how many volumes of a scan to write; they share the report.

    Raises:
        DataError: for a split that CT-RATE does not have.
    """
    root = Path(root)
    for name, phantoms in splits.items():
        split = {"test": "valid", "val": "valid", "validation": "valid"}.get(name, name)
        if split not in _TABLES:
            raise DataError(f"CT-RATE has the splits 'train' and 'valid', not {name!r}.")
        _write_split(root / "dataset", split, phantoms, fixed, reconstructions)
    write_note(root, "CT-RATE")
    return root


def _write_split(base: Path, split: str, phantoms: Iterable[Phantom], fixed: bool, reconstructions: int) -> None:
    reports: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    metadata: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    for number, phantom in enumerate(
        map(replace, track(phantoms, f"volumes, {split}")), start=1
    ):  # copies, so that volumes do not pile up
        scan = f"{split}_{number}_a"
        for reconstruction in range(1, reconstructions + 1):
            volume = f"{scan}_{reconstruction}.nii.gz"
            folder = base / (f"{split}_fixed" if fixed else split) / f"{split}_{number}" / scan
            save_nifti(folder / volume, phantom, hounsfield=fixed)
            reports.append(_report_row(volume, phantom))
            labels.append({"VolumeName": volume, **phantom.labels})
            metadata.append(_metadata_row(volume, phantom))
            items.extend(_vqa_items(volume, phantom, len(reports) - 1, split))
    report_file, label_file, metadata_file, vqa_file = _TABLES[split]
    _write_csv(base / "radiology_text_reports" / f"{report_file}.csv", REPORT_COLUMNS, reports)
    _write_csv(base / "multi_abnormality_labels" / f"{label_file}.csv", ("VolumeName", *CT_RATE_LABELS), labels)
    _write_csv(base / "metadata" / f"{metadata_file}.csv", METADATA_COLUMNS, metadata)
    write_text(base / "metadata" / f"no_chest_{split}.txt", "")
    write_json(base / "vqa" / f"{vqa_file}.json", items, indent=None)


def _write_csv(path: Path, columns: Iterable[str], rows: list[dict[str, Any]]) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def _report_row(volume: str, phantom: Phantom) -> dict[str, Any]:
    report = phantom.report
    values = (volume, report.clinical, report.technique, report.findings, report.impression)
    return dict(zip(REPORT_COLUMNS, values, strict=True))


def _metadata_row(volume: str, phantom: Phantom) -> dict[str, Any]:
    depth, row, column = phantom.spacing
    slices, rows, columns = phantom.size
    values = (
        *(volume, "MedM-VL phantom", "Synthetic chest", phantom.sex, f"{phantom.age:03d}Y", rows, columns),
        *(str([column, row]), -1024, 1, "HU", slices, depth),
    )
    return dict(zip(METADATA_COLUMNS, values, strict=True))


def questions(phantom: Phantom, *, new_wordings: bool = False) -> dict[str, list[texts.Question]]:
    """Return the questions about a CT, by CT-RATE's tag.

    Args:
        phantom: the patient.
        new_wordings: also use wordings that are kept for held-out patients.
    """
    rng = phantom.text_rng()
    names = tuple(FINDINGS)
    request = texts.REPORT_REQUESTS[phantom.index // 2 % len(texts.REPORT_REQUESTS)]
    report = texts.Question(request, phantom.report.text, False, "Report")
    short = [
        *texts.yes_no(phantom.findings, names, "scan", rng, new_wordings=new_wordings),
        *texts.which_side(phantom.findings, names, rng),
        *texts.where(phantom.findings, names, rng),
    ]
    long = texts.long_answers(phantom.findings, rng)
    # In random order: in a dialog, no question may be known by its place.
    return {
        "long_answer": [long[i] for i in rng.permutation(len(long))],
        "short_answer": [short[i] for i in rng.permutation(len(short))],
        "multiple_choice": texts.choices(phantom.findings, names, rng),
        "report_generation": [report],
    }


def _vqa_items(volume: str, phantom: Phantom, number: int, split: str) -> list[dict[str, Any]]:
    kinds = {"long_answer": "conversation", "short_answer": "short_answer"}
    items = []
    for tag, asked in questions(phantom, new_wordings=split != "train").items():
        turns: list[dict[str, str]] = []
        for question in asked:
            image = "<image>\n" if not turns else ""
            value = f"{image}{question.text}<{tag}>"
            turns.append({"from": "human", "value": value, "type": kinds.get(tag, tag)})
            turns.append({"from": "gpt", "value": question.answer})
        items.append({"id": f"{tag}_{number}", "image": volume, "conversations": turns})
    return items
