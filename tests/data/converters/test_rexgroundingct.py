"""ReXGroundingCT: boxes from masks in patient directions, withheld masks, and volumes of both splits of CT-RATE."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from medmvl.errors import DataError

from .helpers import question, run, write_json
from .test_radgenome_chestct import write_volume

SIZE = (8, 10, 5)


def write_mask(path, affine: np.ndarray, *, last: bool = False, second: bool = True) -> None:
    """Write the masks of two findings; the first is a box in voxels 2-3, 5-9, 0-0."""
    masks = np.zeros((2, *SIZE), np.uint8)
    masks[0, 2:4, 5:10, 0:1] = 1
    masks[1, 0, 0, 4] = second
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(masks, 0, -1) if last else masks, affine), path)


def item(name: str) -> dict[str, object]:
    """Return an item of the index."""
    findings = {"0": "Nodule in the right upper lobe", "1": "Pleural  effusion"}
    return {"name": name, "findings": findings, "categories": {"0": "1a"}}


@pytest.fixture
def source(tmp_path):
    ras, lps = np.diag([1.0, 1, 2, 1]), np.diag([-1.0, -1, 2, 1])
    names = {"a": "train_1_a_1.nii.gz", "b": "train_2_a_1.nii.gz", "c": "valid_3_a_1.nii.gz"}
    for name in names.values():
        split, patient, scan, _ = name.split("_")
        write_volume(tmp_path / f"{split}_fixed/{split}_{patient}/{split}_{patient}_{scan}/{name}")
    write_mask(tmp_path / "segmentations" / names["a"], ras)
    write_mask(tmp_path / "segmentations" / names["b"], lps, last=True, second=False)
    splits = {"train": [item(names["a"])], "val": [item(names["b"])], "test": [item(names["c"])]}
    write_json(tmp_path / "dataset.json", splits)
    return tmp_path


def test_boxes_are_in_patient_directions(source, tmp_path) -> None:
    records, result = run("rexgroundingct", source, tmp_path / "out", tasks="refer")
    first, _ = records["train"]
    # Voxels grow to the right and to the front here, so the shares to the left and to the back are counted backwards.
    assert first["boxes3d"] == [[0.5, 0.0, 0.0, 0.75, 0.5, 0.2]]
    (turned,) = records["validation"]
    assert turned["boxes3d"] == [[0.25, 0.5, 0.0, 0.5, 1.0, 0.2]]
    assert question(turned) == "<image3d>\nWhere in the CT is this finding? Nodule in the right upper lobe"
    assert turned["answer"] == "<bx_start>[0.250, 0.500, 0.000, 0.500, 1.000, 0.200]<bx_end>"
    assert (turned["mask"], turned["mask_channel"]) == ("segmentations/train_2_a_1.nii.gz", 0)
    assert (turned["category"], turned["patient"]) == ("1a", "train_2")
    assert result.report.faults == {"finding has an empty mask": 1}
    assert result.report.left_out == {"test finding whose mask is withheld": 2}
    assert any("1 volumes of validation and test are of CT-RATE's training split" in n for n in result.report.notes)


def test_both_questions_are_asked(source, tmp_path) -> None:
    records, _ = run("rexgroundingct", source, tmp_path / "out")
    identify = records["validation"][0]
    assert identify["task"] == "identify"
    assert identify["answer"] == "Nodule in the right upper lobe"
    assert "<bx_start>" in question(identify)


def test_masks_of_another_shape_are_faults(source, tmp_path) -> None:
    path = source / "segmentations/train_1_a_1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, *SIZE), np.uint8), np.eye(4)), path)
    (source / "segmentations/train_2_a_1.nii.gz").write_bytes(b"no NIfTI")
    with pytest.raises(DataError, match="does not show which axis"):
        run("rexgroundingct", source, tmp_path / "out")


def test_index_must_be_there(tmp_path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json"):
        run("rexgroundingct", tmp_path, tmp_path / "out")
