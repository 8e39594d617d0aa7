"""MS-CXR: phrases with boxes in radiographs of MIMIC-CXR, resized ones, too."""

from __future__ import annotations

import pytest

from medmvl.errors import DataError

from .helpers import picture, question, run, write_csv

HEAD = ["category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height", "dicom_id", "split"]
PATH = "files/p10/p1000000{0}/s5000000{0}/{1}.jpg"


def ms_row(number: int, text: str, box: tuple[int, int, int, int], split: str = "test") -> list[object]:
    """Return a row of MS-CXR about the image `d<number>`."""
    return ["Pneumonia", text, PATH.format(number, f"d{number}"), *box, 200, 100, f"d{number}", split]


@pytest.fixture
def ms_cxr(tmp_path):
    rows = [
        ms_row(1, "left basal  opacity", (120, 50, 40, 30)),
        ms_row(1, "bilateral opacities", (120, 50, 40, 30)),
        ms_row(1, "bilateral opacities", (20, 50, 40, 30)),
        ms_row(2, "right effusion", (0, 60, 50, 40), "val"),
        ms_row(2, "outside", (180, 60, 50, 40), "train"),
        ms_row(3, "no image", (0, 60, 50, 40), "train"),
        ms_row(1, "odd split", (0, 60, 50, 40), "holdout"),
    ]
    write_csv(tmp_path / "MS_CXR_Local_Alignment_v1.1.0.csv", [HEAD, *rows])
    picture(tmp_path / PATH.format(1, "d1"), (200, 100), "L")
    picture(tmp_path / PATH.format(2, "d2"), (100, 50), "L")
    return tmp_path


def test_rows_of_a_phrase_become_one_item(ms_cxr, tmp_path) -> None:
    records, result = run("ms-cxr", ms_cxr, tmp_path / "out", tasks="refer")
    one, two = records["test"]
    assert question(one) == "<image>\ngive me the location of left basal opacity"
    assert one["answer"] == "{<60><50><80><80>}"
    assert (one["boxes"], one["image_size"]) == ([[120, 50, 40, 30]], [200, 100])
    assert two["answer"] == "{<10><50><30><80>} {<60><50><80><80>}"
    assert len(two["boxes"]) == 2
    assert (one["patient"], one["study"], one["category"]) == ("p10000001", "s50000001", "Pneumonia")
    assert result.report.faults == {
        "box is empty or outside the image": 1,
        "image is missing": 1,
        "row without a phrase, a known split or a path of MIMIC-CXR": 1,
    }


def test_boxes_follow_resized_images(ms_cxr, tmp_path) -> None:
    records, result = run("ms-cxr", ms_cxr, tmp_path / "out", tasks="identify")
    (record,) = records["validation"]
    assert (record["boxes"], record["image_size"]) == ([[0, 30, 25, 20]], [100, 50])
    assert question(record) == "<image>\nwhat object is in this location {<0><60><25><100>}"
    assert record["answer"] == "right effusion"
    assert any("another size" in note for note in result.report.notes)


def test_first_version_is_all_test(ms_cxr, tmp_path) -> None:
    source = tmp_path / "older"
    write_csv(source / "MS_CXR_Local_Alignment_v1.0.0.csv", [HEAD[:-1], ms_row(1, "opacity", (0, 0, 9, 9))[:-1]])
    picture(source / PATH.format(1, "d1"), (200, 100), "L")
    records, result = run("ms-cxr", source, tmp_path / "out")
    assert {task["task"] for task in records["test"]} == {"refer", "identify"}
    assert any("no split" in note for note in result.report.notes)


def test_unknown_tasks_are_refused(ms_cxr, tmp_path) -> None:
    with pytest.raises(DataError, match="no task"):
        run("ms-cxr", ms_cxr, tmp_path / "out", tasks="segment")


@pytest.mark.parametrize("named", ["", "physionet.org", "physionet.org/files"])
def test_trees_of_physionet_are_found(named, ms_cxr, tmp_path) -> None:
    files = tmp_path / "download/physionet.org/files"
    table = files / "ms-cxr/1.1.0/MS_CXR_Local_Alignment_v1.1.0.csv"
    table.parent.mkdir(parents=True)
    (ms_cxr / table.name).rename(table)
    (files / "mimic-cxr-jpg/2.0.0").mkdir(parents=True)
    (ms_cxr / "files").rename(files / "mimic-cxr-jpg/2.0.0/files")
    records, _ = run("ms-cxr", tmp_path / "download" / named, tmp_path / "out")
    assert len(records["test"]) == 4
