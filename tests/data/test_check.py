"""`data check` lists all faults of a file at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image as PILImage

from medmvl.data.check import check_records
from medmvl.data.formats import write_records
from medmvl.errors import DataError


def record(identifier, image=None):
    text = "<image> What?" if image else "What?"
    row = {"id": identifier, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "x"}]}
    return row | ({"image": image} if image else {})


def test_a_good_file_has_no_fault(tmp_path):
    PILImage.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "x.png")
    write_records(tmp_path / "d.jsonl", [record("a", "x.png"), record("b")])
    seen = []
    assert check_records(tmp_path / "d.jsonl", on_record=seen.append) == []
    assert len(seen) == 2


def test_all_faults_are_listed_with_line_and_id(tmp_path):
    rows = [record("a"), record("a"), record("c", "gone.png"), record("d", "../up.png"), {"id": "e"}]
    lines = [json.dumps(row) for row in rows]
    lines.insert(1, "{broken")
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    faults = check_records(tmp_path / "d.jsonl")
    assert [(fault.where, fault.id) for fault in faults] == [
        ("d.jsonl, line 2", None),
        ("d.jsonl, line 3", "a"),
        ("d.jsonl, line 4", "c"),
        ("d.jsonl, line 5", "d"),
        ("d.jsonl, line 6", "e"),
    ]
    for fault, words in zip(
        faults, ["not valid", "stands already at d.jsonl, line 1", "not exist", "leaves", "neither"], strict=True
    ):
        assert words in str(fault)


def test_missing_file_or_root_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        check_records(tmp_path / "d.jsonl")
    write_records(tmp_path / "d.jsonl", [record("a")])
    with pytest.raises(DataError, match="image root"):
        check_records(tmp_path / "d.jsonl", image_root=tmp_path / "nowhere")


def test_pixels_are_read_once_per_file_on_request(tmp_path):
    pytest.importorskip("medmvl.imaging.read")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    write_records(tmp_path / "d.jsonl", [record("a", "bad.png"), record("b", "bad.png")])
    assert check_records(tmp_path / "d.jsonl") == []
    faults = check_records(tmp_path / "d.jsonl", read_media=True)
    assert [fault.id for fault in faults] == ["a", "b"]
    assert "bad.png" in faults[0].message
