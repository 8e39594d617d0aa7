"""CheXpert Plus: studies from rows of images, CheXbert labels, and the places where the images may be."""

from __future__ import annotations

import json

import pytest

from medmvl.errors import DataError

from .helpers import picture, question, run, write_csv

COLUMNS = [
    *("", "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order"),
    *("report", "section_narrative", "section_findings", "section_impression", "age", "split"),
]


def row(number: int, path: str, view: str, findings: str, impression: str) -> list[object]:
    """Return a row of the table: `path` as in "train/patient1/study1/view1_frontal"."""
    side = "AP" if view == "Frontal" else ""
    dicom = f"{path}.dcm"
    order = [1, f"Report {number}", ""]
    return [number, f"{path}.jpg", dicom, view, side, path.split("/")[1], *order, findings, impression, 60, path[:5]]


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "chexpertplus"
    rows = [
        row(0, "train/patient00001/study1/view2_lateral", "Lateral", " Lungs are\nclear. ", "1. Normal."),
        row(1, "train/patient00001/study1/view1_frontal", "Frontal", " Lungs are\nclear. ", "1. Normal."),
        row(2, "train/patient00002/study3/view1_lateral", "Lateral", "x", "y"),
        row(3, "valid/patient64541/study1/view1_frontal", "Frontal", "", "Effusion."),
        row(4, "valid/patient64542/study1/view1_frontal", "Frontal", "", ""),
        row(5, "train/patient00005/study1/view1_frontal", "Frontal", "a", "b"),
        row(6, "test/patient00006/study1/view1_frontal", "Frontal", "a", "b"),
    ]
    write_csv(root / "df_chexpert_plus_240401.csv", [COLUMNS, *rows])
    for line in rows[:5]:
        picture(root / "PNG/PNG" / str(line[1]).replace(".jpg", ".png"), mode="L")
    labels = {"path_to_image": rows[1][1], "Edema": -1, "Pneumonia": 0.0, "Pneumothorax": 1.0, "Fracture": None}
    file = root / "chexbert_labels/report_fixed.json"
    file.parent.mkdir()
    file.write_text(json.dumps(labels) + "\n", encoding="utf-8")
    return root


def test_rows_of_images_become_studies(source, tmp_path) -> None:
    records, result = run("chexpert-plus", source, tmp_path / "out")
    (train,) = records["train"]
    assert train["id"] == "chexpert-patient00001-study1"
    assert train["image"] == ["PNG/PNG/train/patient00001/study1/view1_frontal.png"]
    assert train["conversations"][1]["value"] == "Findings: Lungs are clear. Impression: 1. Normal."
    assert question(train) == "<image>\nDescribe the given chest x-ray image in detail."
    assert train["labels"] == {"Edema": -1, "Pneumonia": 0, "Pneumothorax": 1}
    assert (train["patient"], train["study"], train["views"]) == ("patient00001", "patient00001/study1", ["AP"])
    (valid,) = records["validation"]
    assert valid["answer"] == "Impression: Effusion."
    assert train["label_convention"] == "chexbert"
    assert not {"labels", "label_convention"} & set(valid)
    assert result.report.left_out == {
        "study without a frontal image": 1,
        "report without the sections asked for (both)": 1,
    }
    assert result.report.faults == {
        "path is not train|valid/patient<n>/study<n>/<image>": 1,
        "image is missing": 1,
    }


def test_all_views_of_a_study_can_be_kept(source, tmp_path) -> None:
    records, _ = run("chexpert-plus", source, tmp_path / "out", views="all", per_study="all", target="impression")
    assert records["train"][0]["views"] == ["AP", "Lateral"]
    assert question(records["train"][0]).count("<image>") == 2
    assert records["train"][1]["views"] == ["Lateral"]
    assert records["train"][0]["conversations"][1]["value"] == "1. Normal."


def test_jpeg_files_of_the_first_release_serve(source, tmp_path) -> None:
    picture(source / "CheXpert-v1.0-small/train/patient00005/study1/view1_frontal.jpg", mode="L")
    records, result = run("chexpert-plus", source, tmp_path / "out", images="jpg", labels="findings")
    assert records["train"][0]["image"] == ["CheXpert-v1.0-small/train/patient00005/study1/view1_frontal.jpg"]
    assert result.report.faults["image is missing"] == 2
    assert any("No findings_fixed.json" in note for note in result.report.notes)


def test_other_folders_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="df_chexpert_plus_240401.csv"):
        run("chexpert-plus", tmp_path, tmp_path / "out")
