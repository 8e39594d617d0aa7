"""VQA-RAD: the release, MEVF's repack and the hub mirror, and the images that train and test share."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medmvl.errors import DataError

from .helpers import picture, question, run, write_json


def row(number: int, image: str, phrase: str, **changes: object) -> dict[str, object]:
    """Return a question with the keys of the release."""
    return {
        "qid": number,
        "phrase_type": phrase,
        "qid_linked_id": "03f451ca-de62-4617-9679-e836026a7642",
        "image_case_url": "https://medpix.nlm.nih.gov/case?id=48e1dd0e-8552-46ad-a354-5eb55be86de6",
        "image_name": image,
        "image_organ": "HEAD",
        "evaluation": "not evaluated",
        "question": f"Is question {number} easy?",
        "question_rephrase": "NULL",
        "question_relation": "NULL",
        "question_frame": "NULL",
        "question_type": "PRES",
        "answer": "Yes",
        "answer_type": "CLOSED",
    } | changes


@pytest.fixture
def release(tmp_path):
    root = tmp_path / "osfstorage"
    for name in ("synpic1.jpg", "synpic2.jpg", "synpic3.jpg"):
        picture(root / "VQA_RAD Image Folder" / name)
    rows = [
        row(1, "synpic1.jpg", "freeform"),
        row(2, "synpic2.jpg", "para", answer_type="OPEN", answer=3, question_type="COUNT"),
        row(3, "synpic2.jpg", "test_freeform", answer_type="CLOSED ", answer="No"),
        row(4, "synpic3.jpg", "test_para", answer_type="OPEN", answer=" right lung\t"),
        row(5, "synpic1.jpg", "unheard of"),
        row(6, "synpic9.jpg", "freeform"),
        row(7, "synpic1.jpg", "freeform", answer_type="MAYBE"),
        row(8, "synpic1.jpg", "freeform", answer=""),
    ]
    write_json(root / "VQA_RAD Dataset Public.json", rows)
    return tmp_path


def test_phrase_type_is_the_split(release, tmp_path) -> None:
    records, result = run("vqa-rad", release, tmp_path / "out")
    assert [r["id"] for r in records["train"]] == ["vqarad-1", "vqarad-2"]
    assert [r["id"] for r in records["test"]] == ["vqarad-3", "vqarad-4"]
    first, second = records["test"]
    assert question(first) == "<image>\nIs question 3 easy?"
    assert (first["answer"], first["answer_type"]) == ("No", "CLOSED")
    assert (second["answer"], second["answer_type"], second["patient"]) == ("right lung", "OPEN", "synpic3")
    assert second["image"] == ["osfstorage/VQA_RAD Image Folder/synpic3.jpg"]
    counted = records["train"][1]
    assert counted["conversations"][1]["value"] == "3"
    assert (counted["question_type"], counted["organ"]) == ("COUNT", "HEAD")
    assert result.report.faults == {
        "phrase_type names no split": 1,
        "image is missing": 1,
        "answer_type is neither OPEN nor CLOSED": 1,
        "empty question, answer or image name": 1,
    }


def test_shared_images_are_reported_and_can_be_left_out(release, tmp_path) -> None:
    _, result = run("vqa-rad", release, tmp_path / "out")
    assert any("1 of 2 test images are also in training" in note for note in result.report.notes)
    records, result = run("vqa-rad", release, tmp_path / "out2", train="unseen")
    assert [r["id"] for r in records["train"]] == ["vqarad-1"]
    assert result.report.left_out == {"training question about an image of the test split": 1}
    assert not any("also in training" in note for note in result.report.notes)


def test_repack_names_the_split_by_file(tmp_path) -> None:
    source = tmp_path / "data_RAD"
    picture(source / "images/synpic1.jpg")
    write_json(source / "trainset.json", [row(1, "synpic1.jpg", "freeform")])
    write_json(source / "testset.json", [row(2, "synpic1.jpg", "freeform")])
    records, _ = run("vqa-rad", source, tmp_path / "out")
    assert [r["id"] for r in records["test"]] == ["vqarad-2"]
    assert records["train"][0]["image"] == ["images/synpic1.jpg"]


def encoded(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (shade, 9, 9)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_mirror_is_read_from_parquet(tmp_path) -> None:
    folder = tmp_path / "vqa-rad/data"
    folder.mkdir(parents=True)
    for split, shades in (("train", (1, 2)), ("test", (2, 3))):
        table = {
            "image": [{"bytes": encoded(90 * shade), "path": None} for shade in shades],
            "question": ["is there pneumothorax?", "where is the mass?"],
            "answer": ["yes", "right lung"],
        }
        pq.write_table(pa.table(table), folder / f"{split}-00000-of-00001-eb8844602202be60.parquet")
    records, result = run("vqa-rad", tmp_path / "vqa-rad", tmp_path / "out")
    assert [r["answer_type"] for r in records["test"]] == ["CLOSED", "OPEN"]
    assert records["test"][0]["patient"] == records["train"][1]["patient"]
    assert any("1 of 2 test images are also in training" in note for note in result.report.notes)


def test_other_folders_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="VQA_RAD Dataset Public.json"):
        run("vqa-rad", tmp_path, tmp_path / "out")
