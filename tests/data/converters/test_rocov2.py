"""ROCOv2: the tables of the release, and the hub mirror."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medmvl.errors import DataError

from .helpers import picture, question, run, write_csv

NAME = "ROCOv2_2023_{}_00000{}"


@pytest.fixture
def release(tmp_path):
    for part in ("train", "valid", "test"):
        picture(tmp_path / f"{part}_images/{part}/{NAME.format(part, 1)}.jpg")
        rows = [["ID", "Caption"], [NAME.format(part, 1), " Axial CT,\nwith a mass "], [NAME.format(part, 2), "x"]]
        write_csv(tmp_path / f"{part}_captions.csv", rows)
    write_csv(tmp_path / "test_concepts.csv", [["ID", "CUIs"], [NAME.format("test", 1), "C0040405;C0817096"]])
    return tmp_path


def test_captions_and_concepts_are_joined(release, tmp_path) -> None:
    records, result = run("rocov2", release, tmp_path / "out")
    assert {split: len(rows) for split, rows in records.items()} == {"train": 1, "validation": 1, "test": 1}
    (record,) = records["test"]
    assert question(record) == "<image>\nDescribe this radiology image."
    assert record["answer"] == "Axial CT, with a mass"
    assert record["concepts"] == ["C0040405", "C0817096"]
    assert record["image"] == ["test_images/test/ROCOv2_2023_test_000001.jpg"]
    assert "concepts" not in records["validation"][0]
    assert result.report.faults == {"image is missing": 3}
    assert any("No train_concepts.csv" in note for note in result.report.notes)


def test_mirror_is_read_from_parquet(tmp_path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    folder = tmp_path / "data"
    folder.mkdir()
    table = {
        "image": [{"bytes": buffer.getvalue(), "path": None}, {"bytes": b"no picture", "path": None}],
        "image_id": [NAME.format("valid", 1), NAME.format("valid", 2)],
        "caption": ["A mass.", "x"],
        "cui": [["C0040405"], []],
    }
    pq.write_table(pa.table(table), folder / "validation-00000-of-00001.parquet")
    records, result = run("rocov2", tmp_path, tmp_path / "out", prompt="Write the caption.")
    (record,) = records["validation"]
    assert (record["id"], record["concepts"]) == ("rocov2-ROCOv2_2023_valid_000001", ["C0040405"])
    assert question(record) == "<image>\nWrite the caption."
    assert result.report.faults == {"image is not readable": 1}


def test_other_folders_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="neither"):
        run("rocov2", tmp_path, tmp_path / "out")
