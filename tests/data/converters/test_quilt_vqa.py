"""Quilt-VQA: the JSON files joined by id, yes and no as answers of closed questions, and the parquet file."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medmvl.errors import DataError

from .helpers import picture, question, run, write_json


@pytest.fixture
def release(tmp_path):
    picture(tmp_path / "quilt_vqa/images/frame1.jpg")
    items = [
        {"id": 0, "answer": "Yes, it  shows gland formation.", "answer_type": "CLOSED", "yes_no_answer": "Yes"},
        {
            "id": 1,
            "answer": "Chronic inflammation.",
            "answer_type": "OPEN",
            "question": "What is seen?",
            "image": "frame1.jpg",
        },
        {"id": 2, "answer": "No gland is seen.", "answer_type": "CLOSED"},
        {"id": 3, "answer": "x", "answer_type": "OPEN"},
        {"id": 4, "answer": "x", "answer_type": "MAYBE"},
    ]
    write_json(tmp_path / "quiltvqa_test_w_ans.json", items)
    asked = [{"question_id": n, "image": "frame1.jpg", "text": f"Question {n}?\n<image>"} for n in (0, 2, 4)]
    file = tmp_path / "quiltvqa_test_wo_ans.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    return tmp_path


def test_both_files_are_joined_by_id(release, tmp_path) -> None:
    records, result = run("quilt-vqa", release, tmp_path / "out")
    closed, opened, sentence = records["test"]
    assert question(closed) == "<image>\nQuestion 0?"
    assert (closed["answer"], closed["long_answer"]) == ("Yes", "Yes, it shows gland formation.")
    assert (closed["answer_type"], closed["patient"]) == ("CLOSED", "frame1")
    assert (question(opened), opened["answer"], opened["answer_type"]) == (
        "<image>\nWhat is seen?",
        "Chronic inflammation.",
        "OPEN",
    )
    assert sentence["answer"] == "No gland is seen."
    assert any("no yes_no_answer" in note for note in result.report.notes)
    assert result.report.faults == {
        "question without an image": 1,
        "question without a text, an answer, or the type OPEN or CLOSED": 1,
    }


def test_parquet_file_is_all_test(tmp_path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    (tmp_path / "data").mkdir()
    table = {
        "image": [{"bytes": buffer.getvalue(), "path": None}],
        "question": ["Is this normal?"],
        "answer": ["No."],
        "answer_type": ["closed"],
        "context": ["..."],
    }
    pq.write_table(pa.table(table), tmp_path / "data/train-00000-of-00001.parquet")
    records, result = run("quilt-vqa", tmp_path, tmp_path / "out")
    assert (records["test"][0]["answer"], records["test"][0]["answer_type"]) == ("No.", "CLOSED")
    assert any("called train" in note for note in result.report.notes)


def test_other_folders_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"quiltvqa_test_w_ans\.json"):
        run("quilt-vqa", tmp_path, tmp_path / "out")
