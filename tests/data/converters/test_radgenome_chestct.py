"""RadGenome-ChestCT: questions from templates, reports by region, and both places of the volumes."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from medmvl.errors import DataError

from .helpers import question, run, write_csv, write_json

NAMES = {"train": "train_1_a_1.nii.gz", "valid": "valid_7_b_2.nii.gz"}


def write_volume(path, value: int = -1000) -> None:
    """Write a small NIfTI volume."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), value, np.int16), np.eye(4)), path)


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "RadGenome-ChestCT/dataset"
    write_volume(root / "train_preprocessed/train_1/train_1a" / NAMES["train"])
    write_volume(root / "valid_preprocessed/valid_7/valid_7b" / NAMES["valid"])
    files = root / "radgenome_files"
    for split, prefix in (("train", "train"), ("valid", "validation")):
        name = NAMES[split]
        sentences = [
            [name, "lung/left lung", "Clear  left lung."],
            [name, "lung/right lung", "Clear right lung."],
            [name, "", "No fracture."],
            ["train_99_a_1.nii.gz", "heart", "Normal."],
        ]
        write_csv(files / f"{prefix}_region_report.csv", [["Volumename", "Anatomy", "Sentence"], *sentences])
        head = ["Volumename", "Anatomy", "Abnormality", "Non-Abnormality"]
        rows = [[name, "lung/left lung", "nodule, cyst", ""], [name, "heart", "", "normal size"]]
        write_csv(files / f"{prefix}_vqa_abnormality.csv", [head, *rows])
        write_csv(files / f"{prefix}_vqa_location.csv", [head[:3], rows[0][:3]])
        write_csv(
            files / f"{prefix}_vqa_presence.csv",
            [["Volumename", "Anatomy", "Finding", "Presence"], [name, "lung/left lung", "nodule", "Yes."]],
        )
        write_csv(files / f"{prefix}_vqa_size.csv", [[*head[:3], "Size"], [name, "lung/left lung", "nodule", "5 mm"]])
        write_csv(files / f"{prefix}_case_disorders.csv", [["Volumename", "Disorders"], [name, "Pneumonia"]])
    templates = {"presence": ["Does the {region} show {abnormality}?", "Any {abnormality} in {region}?"]}
    write_json(root / "qa_templates/presence_template.json", templates)
    return tmp_path / "RadGenome-ChestCT"


def test_tables_become_questions_with_the_first_template(source, tmp_path) -> None:
    records, result = run("radgenome-chestct", source, tmp_path / "out")
    valid = {record["question_type"]: record for record in records["valid"]}
    assert question(valid["presence"]) == "<image3d>\nDoes the left lung show nodule?"
    assert (valid["presence"]["answer"], valid["presence"]["answer_type"]) == ("Yes.", "CLOSED")
    assert (valid["location"]["answer"], valid["location"]["answer_type"]) == ("lung/left lung", "OPEN")
    assert question(valid["location"]) == "<image3d>\nWhere is the nodule?"
    assert question(valid["size"]) == "<image3d>\nWhat is the size of the nodule in the left lung?"
    assert (valid["abnormality"]["answer"], valid["disorder"]["answer"]) == ("nodule, cyst", "Pneumonia")
    assert (valid["size"]["patient"], valid["size"]["scan"]) == ("valid_7", "valid_7_b")
    assert valid["size"]["image3d"] == ["dataset/valid_preprocessed/valid_7/valid_7b/valid_7_b_2.nii.gz"]
    assert result.report.left_out["row with an empty cell"] == 2
    assert any("our own words" in note for note in result.report.notes)


def test_sentences_of_one_region_become_one_report(source, tmp_path) -> None:
    records, result = run("radgenome-chestct", source, tmp_path / "out", tasks="report")
    lung, whole = records["valid"]
    assert question(lung) == "<image3d>\nDescribe the findings of the lung in this CT."
    assert lung["answer"] == "Clear left lung. Clear right lung."
    assert (whole["question_type"], whole["answer"]) == ("whole scan", "No fracture.")
    assert lung["task"] == "report"
    assert result.report.faults == {"volume is missing": 2}


def test_volumes_of_ct_rate_serve(source, tmp_path) -> None:
    root = source / "dataset"
    (root / "train_preprocessed").rename(root / "elsewhere")
    (root / "valid_preprocessed").rename(root / "nowhere")
    with pytest.raises(DataError, match="no volumes of CT-RATE"):
        run("radgenome-chestct", source, tmp_path / "out")
    write_volume(source / "CT-RATE/dataset/valid_fixed/valid_7/valid_7_b" / NAMES["valid"])
    records, result = run("radgenome-chestct", source, tmp_path / "out2", tasks="disorder")
    assert set(records) == {"valid"}
    assert any("taken to be in HU" in note for note in result.report.notes)


def test_unknown_tasks_are_refused(source, tmp_path) -> None:
    with pytest.raises(DataError, match="no task"):
        run("radgenome-chestct", source, tmp_path / "out", tasks="sizes")
