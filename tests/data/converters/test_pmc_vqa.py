"""PMC-VQA: both versions, their ways to write options, and articles shared between splits."""

from __future__ import annotations

import pytest

from medmvl.errors import DataError

from .helpers import picture, question, run, write_csv

FIRST = ["Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label"]
SECOND = ["index", "Figure_path", "Caption", "Question", *FIRST[3:7], "Answer", "split"]
OPTIONS = ["A:Diffuse uptake pattern", " B:Focal uptake pattern ", "C:No uptake pattern", "D:Cannot determine"]
ASKED = " What is the uptake pattern? "


@pytest.fixture
def first(tmp_path):
    for name in ("PMC1064097_F1.jpg", "PMC1064097_F2.jpg", "PMC2_F1.jpg"):
        picture(tmp_path / "images" / name)
    good = ["Focal uptake pattern", *OPTIONS, "B"]
    write_csv(tmp_path / "train.csv", [FIRST, ["PMC1064097_F2.jpg", ASKED, *good], ["PMC2_F1.jpg", ASKED, *good]])
    rows = [
        ["PMC1064097_F1.jpg", ASKED, *good],
        ["PMC1064097_F1.jpg", "Is it focal?", "Yes", "A: Yes", "B: No", "", "", "A"],
        ["PMC1064097_F1.jpg", ASKED, "Hot", *OPTIONS, "E"],
        ["missing.jpg", ASKED, *good],
    ]
    write_csv(tmp_path / "test.csv", [FIRST, *rows])
    write_csv(tmp_path / "test_clean.csv", [FIRST, rows[0]])
    return tmp_path


def test_first_version_asks_with_lettered_options(first, tmp_path) -> None:
    records, result = run("pmc-vqa", first, tmp_path / "out")
    assert {split: len(rows) for split, rows in records.items()} == {"test": 2, "test_clean": 1, "train": 2}
    record = records["test"][0]
    assert question(record) == (
        "<image>\nWhat is the uptake pattern? (a) Diffuse uptake pattern (b) Focal uptake pattern (c) No uptake pattern "
        "(d) Cannot determine"
    )
    assert record["answer"] == "(b) Focal uptake pattern"
    assert record["options"]["B"] == "Focal uptake pattern"
    assert (record["answer_choice"], record["answer_type"], record["task"]) == ("B", "CLOSED", "choice")
    assert records["test"][1]["options"] == {"A": "Yes", "B": "No"}
    assert record["patient"] == "PMC1064097"
    assert result.report.faults == {
        "answer is none of the options, or more than one": 1,
        "image is missing": 1,
    }
    assert "1 of 2 articles with test figures have figures in training, too." in result.report.notes


def test_second_version_has_letters_as_answers(tmp_path) -> None:
    picture(tmp_path / "figures/PMC5_F3.jpg")
    row = [7, "PMC5_F3.jpg", "A caption, with a comma.", ASKED, *(text[2:] for text in OPTIONS), "B", "test"]
    write_csv(tmp_path / "test_2.csv", [SECOND, row])
    records, result = run("pmc-vqa", tmp_path, tmp_path / "out")
    assert records["test"][0]["id"] == "pmcvqa-test_2-7"
    assert records["test"][0]["answer_choice"] == "B"
    assert records["test"][0]["image"] == ["figures/PMC5_F3.jpg"]
    assert result.report.notes == []


def test_open_form_leaves_the_options_out(first, tmp_path) -> None:
    records, _ = run("pmc-vqa", first, tmp_path / "out", form="both")
    assert len(records["test"]) == 4
    closed, opened = records["test"][:2]
    assert (closed["task"], opened["task"]) == ("choice", "vqa")
    assert question(opened) == "<image>\nWhat is the uptake pattern?"
    assert (opened["answer"], opened["answer_type"]) == ("Focal uptake pattern", "OPEN")
    assert records["test"][3]["answer_type"] == "CLOSED"  # "Yes"


def test_missing_version_is_refused(first, tmp_path) -> None:
    with pytest.raises(DataError, match="no table of version 2"):
        run("pmc-vqa", first, tmp_path / "out", version="2")
