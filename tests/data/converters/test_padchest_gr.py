"""PadChest-GR: sentences with boxes, reports in two languages, and the table of splits."""

from __future__ import annotations

import pytest

from medmvl.errors import DataError

from .helpers import picture, run, write_csv, write_json


def finding(text: str, boxes: list[list[float]], **changes: object) -> dict[str, object]:
    """Return a sentence as PadChest-GR writes it."""
    return {
        "sentence_en": text,
        "sentence_es": f"{text} (es)",
        "abnormal": bool(boxes),
        "boxes": boxes,
        "extra_boxes": [],
        "labels": ["nodule"] if boxes else ["normal"],
        "locations": [],
        "progression": None,
    } | changes


@pytest.fixture
def padchest(tmp_path):
    def study(name: str, *findings: dict[str, object]) -> dict[str, object]:
        return {"StudyID": name, "ImageID": f"{name}.png", "PreviousStudyID": None, "findings": list(findings)}

    studies = [
        study("1", finding("A nodule.", [[0.5, 0.25, 0.75, 0.5]], progression="stable"), finding("No effusion.", [])),
        study("2", finding("Two  nodules.", [[0.5, 0, 1, 1], [0, 0, 0.25, 1]])),
        study("3", finding("Pixels.", [[10, 10, 20, 20]])),
        study("4", finding("Not in the table.", [])),
        study("5", finding("No image.", [])),
        study("6", finding("", [], sentence_es="Sin derrame.")),
    ]
    write_json(tmp_path / "grounded_reports_20240819.json", studies)
    rows = [[number, f"2{number}", split] for number, split in ((1, "test"), (2, "train"), (3, "validation"))]
    rows += [[1, "21", "test"], [5, "25", "train"], [6, "26", "test"]]
    write_csv(tmp_path / "master_table.csv", [["StudyID", "PatientID", "split"], *rows])
    for number in (1, 2, 3, 4, 6):
        picture(tmp_path / f"Padchest_GR_files/{number}.png", (80, 40), "L")
    return tmp_path


def test_sentences_become_reports_and_boxes(padchest, tmp_path) -> None:
    records, result = run("padchest-gr", padchest, tmp_path / "out")
    report, refer, identify = records["test"]
    assert report["answer"] == "A nodule. No effusion."
    assert (report["task"], report["finding_labels"], report["patient"]) == ("report", ["nodule"], "p21")
    assert refer["answer"] == "{<50><25><75><50>}"
    assert (refer["boxes"], refer["image_size"], refer["progression"]) == ([[40, 10, 20, 10]], [80, 40], "stable")
    assert (identify["task"], identify["answer"]) == ("identify", "A nodule.")
    assert [r["task"] for r in records["train"]] == ["report", "refer", "identify"]
    assert records["train"][1]["conversations"][1]["value"] == "{<0><0><25><100>} {<50><0><100><100>}"
    assert [r["task"] for r in records["validation"]] == ["report"]
    assert result.report.faults == {
        "box is not [x1, y1, x2, y2] between 0 and 1": 1,
        "study is not in the table, or its split is not known": 1,
        "image is missing": 1,
        "study without a readable image": 1,
    }
    assert result.report.left_out == {"study without a sentence in the language asked for": 1}


def test_spanish_sentences_can_be_asked_for(padchest, tmp_path) -> None:
    records, _ = run("padchest-gr", padchest, tmp_path / "out", language="es", tasks="report")
    assert [r["answer"] for r in records["test"]] == ["A nodule. (es) No effusion. (es)", "Sin derrame."]


def test_reports_without_the_table_are_refused(padchest, tmp_path) -> None:
    (padchest / "master_table.csv").unlink()
    with pytest.raises(DataError, match=r"no master_table\.csv"):
        run("padchest-gr", padchest, tmp_path / "out")
