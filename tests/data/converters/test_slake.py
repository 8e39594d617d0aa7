"""SLAKE: both spellings of the second split, both languages, boxes, and the traps."""

from __future__ import annotations

import json

import pytest

from medmvl.errors import DataError
from medmvl.phantoms import split_patients, write_slake

from .helpers import picture, question, run, write_json


def row(number: int, image: str = "xmlab1/source.jpg", **changes: object) -> dict[str, object]:
    """Return a question as SLAKE writes it."""
    return {
        "img_id": 1,
        "img_name": image,
        "question": f"Is question {number} easy?",
        "answer": "Yes",
        "q_lang": "en",
        "location": "Lung",
        "modality": "CT",
        "answer_type": "CLOSED",
        "base_type": "vqa",
        "content_type": "Abnormality",
        "triple": ["vhead", "_", "_"],
        "qid": number,
    } | changes


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "Slake1.0"
    picture(root / "imgs/xmlab1/source.jpg", (512, 512))
    picture(root / "imgs/xmlab2/source.jpg", (100, 50))
    picture(root / "imgs/xmlab3/source.jpg", (512, 512))
    for image in ("xmlab1", "xmlab3"):
        boxes = [{"Liver": [56, 73, 190, 142]}, {"Spleen": [500, 500, 100, 100]}]
        write_json(root / f"imgs/{image}/detection.json", boxes)
    write_json(root / "imgs/xmlab2/detection.json", [{"Left Lung": [0, 0, 50, 25]}])
    write_json(root / "train.json", [row(1), row(2), row(3, q_lang="zh", question="有吗？", answer="有")])
    write_json(root / "validate.json", [row(4, "xmlab3/source.jpg", answer_type="OPEN", answer="MRI")])
    write_json(
        root / "test.json",
        [row(5, "xmlab2/source.jpg"), row(6, "xmlab9/source.jpg"), row(7, "xmlab2/source.jpg", answer="")],
    )
    return tmp_path


def test_questions_keep_split_types_and_answers(source, tmp_path) -> None:
    records, result = run("slake", source, tmp_path / "out", tasks="vqa")
    assert {split: len(rows) for split, rows in records.items()} == {"train": 2, "validation": 1, "test": 1}
    first = records["train"][0]
    assert question(first) == "<image>\nIs question 1 easy?"
    assert first["conversations"][1]["value"] == "Yes"
    assert "answer" not in first
    assert records["validation"][0]["answer"] == "MRI"
    assert records["validation"][0]["answer_type"] == "OPEN"
    assert records["test"][0]["patient"] == "xmlab2"
    assert result.report.left_out["language is 'zh'"] == 1
    assert result.report.faults == {"image is missing": 1, "empty question or answer": 1}


def test_boxes_become_the_published_text(source, tmp_path) -> None:
    records, result = run("slake", source, tmp_path / "out", tasks="refer,identify")
    refer, identify = sorted(records["validation"], key=lambda r: r["task"], reverse=True)
    assert question(refer) == "<image>\ngive me the location of Liver"
    assert refer["answer"] == "{<10><14><48><41>}"  # truncated, not rounded
    assert refer["boxes"] == [[56, 73, 190, 142]]
    assert refer["image_size"] == [512, 512]
    assert question(identify) == "<image>\nwhat object is in this location {<10><14><48><41>}"
    assert identify["answer"] == "Liver"
    assert result.report.faults["box is empty or outside the image"] == 2  # once in train, once in validation


def test_multi_turn_joins_questions_of_one_image(source, tmp_path) -> None:
    records, _ = run("slake", source, tmp_path / "out", multi_turn=True, tasks="vqa", language="all")
    (dialog,) = records["train"]
    assert len(dialog["conversations"]) == 6
    assert sum(turn["value"].count("<image>") for turn in dialog["conversations"]) == 1
    assert question(dialog).startswith("<image>\n")
    short, _ = run("slake", source, tmp_path / "out2", multi_turn=True, tasks="vqa", language="all", turns=2)
    assert [len(r["conversations"]) for r in short["train"]] == [4, 2]
    assert len(records["validation"]) == 1  # evaluation stays one question each


def test_chinese_alone_and_the_mirrors_file_name(source, tmp_path) -> None:
    (source / "Slake1.0/validate.json").rename(source / "Slake1.0/validation.json")
    records, _ = run("slake", source / "Slake1.0", tmp_path / "out", language="all", tasks="vqa")
    assert len(records["validation"]) == 1
    assert [r["language"] for r in records["train"]] == ["en", "en", "zh"]


def test_a_path_out_of_the_source_is_a_fault(source, tmp_path) -> None:
    picture(tmp_path.parent / "secret.jpg")
    root = source / "Slake1.0"
    write_json(root / "train.json", [row(1), row(2, "../../../secret.jpg")])
    records, result = run("slake", source, tmp_path / "out", tasks="vqa")
    assert len(records["train"]) == 1
    assert result.report.faults["image path leaves the source"] == 1


def test_an_unknown_task_is_refused(source, tmp_path) -> None:
    with pytest.raises(DataError, match="Allowed: vqa, refer, identify"):
        run("slake", source, tmp_path / "out", tasks="vqa,locate")


def test_phantoms_go_through_without_a_fault(tmp_path) -> None:
    write_slake(tmp_path / "src", split_patients(0, {"train": 2, "val": 2, "test": 2}, (16, 32, 32), 64))
    records, result = run("slake", tmp_path / "src", tmp_path / "out")
    assert not result.report.faults
    patients = [{record["patient"] for record in rows} for rows in records.values()]
    assert not set.intersection(*patients)
    assert {record["task"] for record in records["test"]} == {"vqa", "refer", "identify"}


def test_languages_share_no_image_between_splits(source, tmp_path) -> None:
    root = source / "Slake1.0"
    picture(root / "imgs/xmlab4/source.jpg", (64, 64))
    write_json(root / "imgs/xmlab4/detection.json", [{"Heart": [1, 2, 20, 30]}])
    train = json.loads((root / "train.json").read_text())
    write_json(root / "train.json", [*train, row(80, "xmlab4/source.jpg")])
    test = json.loads((root / "test.json").read_text())
    chinese = row(90, q_lang="zh", question="这是什么？")
    write_json(root / "test.json", [*test, chinese])
    records, result = run("slake", source, tmp_path / "all", language="all")
    images = {split: {record["image"][0] for record in rows} for split, rows in records.items()}
    assert images == {
        "train": {"Slake1.0/imgs/xmlab4/source.jpg"},
        "validation": {"Slake1.0/imgs/xmlab3/source.jpg"},
        "test": {f"Slake1.0/imgs/xmlab{n}/source.jpg" for n in (1, 2)},
    }
    assert {record["task"] for record in records["train"]} == {"vqa", "refer", "identify"}
    assert result.report.left_out["question about an image that a later split has too"] == 3


def test_one_language_keeps_its_split_and_counts_shared_images(source, tmp_path) -> None:
    root = source / "Slake1.0"
    write_json(root / "validate.json", [row(4, "xmlab2/source.jpg")])
    write_json(root / "test.json", [row(5, q_lang="zh", question="有吗？", answer="有")])
    records, told = run("slake", source, tmp_path / "en")
    assert {record["image"][0] for record in records["train"]} == {"Slake1.0/imgs/xmlab1/source.jpg"}
    assert any(note.startswith("1 training images are validation or test images") for note in told.report.notes)
