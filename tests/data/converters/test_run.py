"""Running a converter: whole files or none, every fault counted, options checked, memory flat."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zipfile

import pytest

from medmvl.data.converters import DATASETS, convert
from medmvl.data.converters.seen import SeenIds
from medmvl.data.tables import iter_csv, iter_json_array, iter_json_object, iter_xlsx
from medmvl.errors import DataError

from .helpers import picture, write_csv, write_json


@pytest.fixture
def table(tmp_path):
    """An own table with one good row, one without an answer, and one whose image is not there."""
    picture(tmp_path / "src" / "a.png")
    rows = [["file", "q", "answer"], ["a.png", "What?", "this"], ["a.png", "What?", ""], ["b.png", "What?", "that"]]
    write_csv(tmp_path / "src" / "table.csv", rows)
    return tmp_path


def test_faults_are_counted_named_and_reported(table) -> None:
    result = convert(
        "folder", table / "src", table / "out", options={"image": "file", "question": "q"}, max_fault_share=0.9
    )
    report = json.loads((table / "out" / "report.json").read_text())
    assert result.counts == {"train": 1}
    assert report["records"] == {"train": 1}
    assert report["faults"]["empty question or answer"] == {"count": 1, "first": ["row 3"]}
    assert report["faults"]["path in column 'file' does not exist"]["first"] == ["row 4: b.png"]
    assert report["license"]
    assert report["options"]["image"] == "file"


def test_too_many_faults_fail_after_the_good_ones_are_written(table) -> None:
    with pytest.raises(DataError, match="2 of 3 items of folder are faulty"):
        convert("folder", table / "src", table / "out", options={"image": "file", "question": "q"})
    assert (table / "out" / "train.jsonl").read_text().count("\n") == 1
    assert (table / "out" / "report.json").is_file()


def test_strict_stops_at_the_first_fault_and_leaves_nothing_half(table) -> None:
    with pytest.raises(DataError, match="row 3: empty question or answer"):
        convert("folder", table / "src", table / "out", options={"image": "file", "question": "q"}, strict=True)
    assert list((table / "out").iterdir()) == []


def test_rows_in_another_encoding_are_faults_like_others(table) -> None:
    with (table / "src" / "table.csv").open("ab") as handle:
        handle.write("a.png,What?,caf\xe9\r\n".encode("latin-1"))
        handle.write(",What?,caf\xe9\r\n".encode())  # so the table is UTF-8, not Windows-1252
    options = {"image": "file", "question": "q"}
    result = convert("folder", table / "src", table / "out", options=options, max_fault_share=0.9)
    assert result.report.examples["row is not UTF-8"] == ["table.csv, line 5"]
    with pytest.raises(DataError, match="3 of 5 items of folder are faulty"):
        convert("folder", table / "src", table / "out", options=options)


def test_an_image_of_no_bytes_is_a_fault(table) -> None:
    (table / "src" / "b.png").write_bytes(b"")
    options = {"image": "file", "question": "q"}
    result = convert("folder", table / "src", table / "out", options=options, max_fault_share=0.9)
    assert result.report.examples["path in column 'file' is an empty file"] == ["row 4: b.png"]


def test_unknown_names_are_answered_with_the_closest(table) -> None:
    with pytest.raises(DataError, match="Did you mean 'slake'"):
        convert("slacke", table / "src", table / "out")
    with pytest.raises(DataError, match="Did you mean 'language'"):
        convert("slake", table / "src", table / "out", options={"langauge": "en"})
    with pytest.raises(DataError, match="turns"):
        convert("slake", table / "src", table / "out", options={"turns": "many"})


def test_a_missing_column_is_named_with_those_that_are_there(table) -> None:
    with pytest.raises(DataError, match=r"lacks the column picture. It has: file, q, answer"):
        convert("folder", table / "src", table / "out", options={"image": "picture", "question": "q"})


def test_a_missing_source_and_a_foreign_layout_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        convert("slake", tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    for name in DATASETS:
        with pytest.raises(DataError):
            convert(name, tmp_path / "empty", tmp_path / "out")


def test_every_converter_says_license_home_and_layout() -> None:
    expected = {
        *("llava-pretrain", "llava-med", "path-vqa", "slake", "mimic-cxr", "mpx-single", "medmnist", "sa-med2d-20m"),
        *("ct-rate", "m3d-cap", "m3d-vqa", "amos-mm", "merlin", "folder"),
        *("vqa-rad", "iu-xray", "pmc-vqa", "omnimedvqa", "rocov2", "chexpert-plus"),
        *("ms-cxr", "padchest-gr", "radgenome-chestct", "3d-rad", "rexgroundingct", "bimcv-r"),
        *("quilt-vqa",),
    }
    assert set(DATASETS) == expected
    for name in DATASETS:
        converter = DATASETS[name]
        assert converter.license
        assert converter.homepage
        assert converter.layout
        assert all(field.description for field in converter.options.model_fields.values())


def test_limit_stops_early(tmp_path) -> None:
    write_csv(tmp_path / "t.csv", [["answer"], *[[f"a{i}"] for i in range(500)]])
    result = convert("folder", tmp_path / "t.csv", tmp_path / "out", options={"prompt": "Say."}, limit=3)
    assert result.counts == {"train": 3}


def test_an_id_that_comes_twice_is_a_fault(tmp_path) -> None:
    write_csv(tmp_path / "t.csv", [["name", "answer"], ["x", "1"], ["x", "2"]])
    options = {"prompt": "Say.", "id": "name"}
    result = convert("folder", tmp_path / "t.csv", tmp_path / "out", options=options, max_fault_share=1)
    assert result.counts == {"train": 1}
    assert result.report.faults == {"id seen twice in one split": 1}


def test_json_is_streamed_in_flat_memory(tmp_path) -> None:
    file = tmp_path / "big.json"
    with file.open("w") as handle:
        handle.write("[")
        for number in range(12_000):
            handle.write(("," if number else "") + json.dumps({"id": number, "text": "x" * 200}))
        handle.write("]")
    tracemalloc.start()
    count = sum(1 for _ in iter_json_array(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 12_000
    assert peak < 500_000  # the file is 3 MB


def test_a_cut_off_download_is_said_to_be_one(tmp_path) -> None:
    whole = json.dumps([{"id": i} for i in range(100)])
    (tmp_path / "cut.json").write_text(whole[:300])
    with pytest.raises(DataError, match=r"cut\.json is cut off"):
        list(iter_json_array(tmp_path / "cut.json"))
    (tmp_path / "lfs.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match="Git-LFS pointer"):
        list(iter_json_array(tmp_path / "lfs.json"))
    write_json(tmp_path / "object.json", {"a": 1})
    with pytest.raises(DataError, match="does not begin like a JSON array"):
        list(iter_json_array(tmp_path / "object.json"))
    assert list(iter_json_object(tmp_path / "object.json")) == [("a", 1)]
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf[1, 2]")
    assert list(iter_json_array(tmp_path / "bom.json")) == [1, 2]


def test_wrong_encodings_and_damaged_tables_are_named(tmp_path) -> None:
    (tmp_path / "latin.csv").write_bytes("a,b\nplain,0\ncaf\xe9,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 3: not UTF-8"):
        list(iter_csv(tmp_path / "latin.csv"))
    faults = []
    rows = list(iter_csv(tmp_path / "latin.csv", on_fault=lambda *fault: faults.append(fault)))
    assert rows == [{"a": "plain", "b": "0"}]
    assert faults == [("row is not UTF-8", "latin.csv, line 3")]
    (tmp_path / "header.csv").write_bytes("\xe9t\xe9,b\n1,2\n".encode("latin-1"))
    with pytest.raises(DataError, match="the header is not UTF-8"):
        list(iter_csv(tmp_path / "header.csv"))
    for encoding in ("utf-16", "utf-8-sig"):  # what spreadsheets write, told by the byte order mark
        (tmp_path / "marked.csv").write_bytes("a,b\ncaf\xe9,左\n".encode(encoding))
        assert list(iter_csv(tmp_path / "marked.csv", ["a"])) == [{"a": "caf\xe9", "b": "左"}]
    whole = gzip.compress(("a,b\n" + "some text,1\n" * 5000).encode())
    (tmp_path / "half.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        list(iter_csv(tmp_path / "half.csv.gz"))
    (tmp_path / "bad.csv.gz").write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(DataError, match="damaged"):
        list(iter_csv(tmp_path / "bad.csv.gz"))
    (tmp_path / "bad.xlsx").write_bytes(b"not a workbook")
    with pytest.raises(DataError, match="not a readable .xlsx"):
        list(iter_xlsx(tmp_path / "bad.xlsx"))


def test_ids_are_remembered_exactly_across_merges(monkeypatch) -> None:
    monkeypatch.setattr("medmvl.data.converters.seen._RECENT", 7)
    seen = SeenIds()
    assert all(seen.add(f"id-{number}") for number in range(50))
    assert not any(seen.add(f"id-{number}") for number in range(50))
    assert seen.add("another")


def test_an_archive_is_not_a_source(tmp_path) -> None:
    (tmp_path / "half.zip").write_bytes(b"PK\x03\x04 and then the line broke")
    with pytest.raises(DataError, match="not a whole zip archive"):
        convert("slake", tmp_path / "half.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.writestr("train.json", "[]")
    with pytest.raises(DataError, match="Unpack it"):
        convert("slake", tmp_path / "whole.zip", tmp_path / "out")


def test_a_shape_nobody_foresaw_is_a_message_not_a_crash(tmp_path) -> None:
    write_json(tmp_path / "src/M3D_Cap.json", {"train": ["not an item"]})
    with pytest.raises(DataError, match="not in the documented layout"):
        convert("m3d-cap", tmp_path / "src", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jsonl"))
    (tmp_path / "flat/chestmnist.npz").mkdir(parents=True)
    with pytest.raises(DataError, match="or damaged"):
        convert("medmnist", tmp_path / "flat", tmp_path / "out")


def test_split_names_are_checked_and_old_splits_removed(tmp_path) -> None:
    options = {"prompt": "Say.", "split": "part"}
    write_csv(tmp_path / "t.csv", [["part", "answer"], ["../evil", "1"]])
    with pytest.raises(DataError, match="cannot be a file name"):
        convert("folder", tmp_path / "t.csv", tmp_path / "out", options=options)
    write_csv(tmp_path / "t.csv", [["part", "answer"], ["train", "1"], ["test", "2"]])
    convert("folder", tmp_path / "t.csv", tmp_path / "out", options=options)
    convert("folder", tmp_path / "t.csv", tmp_path / "out", options={"prompt": "Say."})
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["report.json", "train.jsonl"]
