"""Own tables: embedded pictures, placeholders, exact shares, pseudonyms, saved data sets and chat files."""

from __future__ import annotations

import csv
import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.data.check import check_records
from medmvl.data.converters.splits import divide
from medmvl.data.pseudonyms import Pseudonyms, holds, mask
from medmvl.errors import DataError
from medmvl.imaging import read_image

from .helpers import picture, question, run, write_csv, write_json

NAMES = ["MUELLER^ANNA", "PAT0012345", "19610307-55"]


@pytest.fixture(autouse=True)
def key_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDMVL_PSEUDONYM_KEY", str(tmp_path / "keys/pseudonym.key"))


def test_pictures_in_cells_are_exported(tmp_path):
    data = picture(tmp_path / "a.png").read_bytes()
    (tmp_path / "src").mkdir()
    cells = pa.array([{"bytes": data, "path": None}, {"bytes": b"none", "path": None}])
    table = pa.table({"image": cells, "question": ["q?"] * 2, "answer": ["a"] * 2})
    pq.write_table(table, tmp_path / "src/train.parquet")
    records, result = run("folder", tmp_path / "src", tmp_path / "out", image="image", question="question")
    assert (tmp_path / "out" / records["train"][0]["image"][0]).read_bytes() == data
    assert result.report.faults == {"cell of column 'image' is neither a path nor a readable picture": 1}


def test_placeholder_of_a_question_is_taken_once(tmp_path):
    picture(tmp_path / "src/a.png")
    rows = [["file", "question", "answer"], ["a.png", "<image> What?", "yes"], ["a.png", "What?", "see <image>"]]
    write_csv(tmp_path / "src/t.csv", [*rows, ["a.png", "<image><image>?", "no"]])
    records, result = run("folder", tmp_path / "src", tmp_path / "out", image="file", question="question")
    assert [question(record) for record in records["train"]] == ["<image> What?"]
    assert sum(result.report.faults.values()) == 2


@pytest.mark.parametrize(("patients", "share", "expected"), [(12, 0.25, 3), (10, 0.2, 2), (3, 0.1, 1), (1, 0.2, 0)])
def test_shares_are_exact_by_patient(patients, share, expected):
    splits = divide([f"p{number}" for number in range(patients)], share, share)
    assert list(splits.values()).count("test") == expected
    assert splits == divide([f"p{number}" for number in reversed(range(patients))], share, share)


def test_a_patient_is_in_one_split(tmp_path):
    rows = [[f"{n}.png", "q?", "a", f"patient-{n // 3}"] for n in range(36)]
    for row in rows:
        picture(tmp_path / "src" / row[0])
    write_csv(tmp_path / "src/t.csv", [["file", "question", "answer", "who"], *rows])
    options = {"image": "file", "question": "question", "patient": "who", "test_share": 0.25, "val_share": 0.25}
    records, _ = run("folder", tmp_path / "src", tmp_path / "out", **options)
    patients = {split: {row["patient"] for row in rows} for split, rows in records.items()}
    assert {split: len(found) for split, found in patients.items()} == {"train": 6, "test": 3, "validation": 3}
    assert len(set.union(*patients.values())) == 12


def test_identifiers_are_in_no_output(tmp_path):
    source = tmp_path / "src"
    rows = []
    for number, name in enumerate(NAMES):
        folder = name.replace("^", "_")
        picture(source / folder / f"{folder}_{number}.png")
        text = f"Report of {name.title().replace('^', ', ')}: clear."
        rows.append([f"{folder}/{folder}_{number}.png", text, name, f"{name}-{number}"])
    rows.append([f"{NAMES[0]}/gone.png", "x", NAMES[0], "last"])
    write_csv(source / "t.csv", [["file", "report", "who", "id"], *rows])
    command = ["data", "convert", "folder", str(source), "--out", str(tmp_path / "out"), "--max-faults", "0.5"]
    columns = ["--image", "file", "--answer", "report", "--patient", "who", "--id", "id", "--prompt", "Describe."]
    result = CliRunner().invoke(app, [*command, *columns, "--test-share", "0.4"])
    assert result.exit_code == 0, result.output
    assert check_records(tmp_path / "out/train.jsonl", read_media=True) == []
    texts = [result.output.replace(str(tmp_path), "")]
    for file in (tmp_path / "out").rglob("*"):
        texts.append(str(file.relative_to(tmp_path)))
        if file.suffix in (".jsonl", ".json"):
            texts.append(file.read_text())
    for text in texts:
        assert not holds(text, NAMES), text


def test_pseudonyms_need_the_key(tmp_path):
    first, second = Pseudonyms(tmp_path / "a.key"), Pseudonyms(tmp_path / "b.key")
    assert first.of("P1") == Pseudonyms(tmp_path / "a.key").of(" P1 ")
    assert first.of("P1") != second.of("P1")
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "b.key").write_text("no key")
    with pytest.raises(DataError, match="64 hex digits"):
        Pseudonyms(tmp_path / "b.key")


def test_names_are_masked_in_any_spelling():
    assert mask("of Mueller, Anna and MUELLER_ANNA.", ["MUELLER^ANNA"], "p1") == "of p1 and p1."
    assert mask("Muellerin has CT 12", ["Mueller", "CT", "12"], "p1") == "Muellerin has CT 12"


@pytest.mark.parametrize(
    "text",
    [
        "born 19430217",
        "b. 1943-02-17.",
        "*17.02.1943",
        "17.2.1943",
        "02/17/1943",
        "17 Feb 1943",
        "February 17th, 1943",
        "17. März 1943",
    ],
)
def test_dates_are_masked_in_any_notation(text):
    wanted = "19430317" if "März" in text else "1943-02-17"
    assert holds(text, [wanted])
    assert not holds(text.replace("3", "4"), [wanted])


def test_number_is_masked_within_a_word():
    assert mask("ctMRN7731942b and 12345", ["MRN7731942", "1234"], "p1") == "ctp1b and 12345"


def test_identifier_columns_are_removed_from_what_is_kept(tmp_path):
    picture(tmp_path / "src/a.png")
    head = ["file", "report", "MRN", "DateOfBirth", "Surname", "finding", "acq"]
    row = [
        "a.png",
        "Mrs. Quisenberry (17.02.1943), MRN 773194: clear",
        "773194",
        "1943-02-17",
        "Quisenberry",
        "clear",
        "773194-2",
    ]
    write_csv(tmp_path / "src/t.csv", [head, row])
    chosen = {"image": "file", "answer": "report", "prompt": "?", "keep": "DateOfBirth,finding,acq"}
    records, result = run("folder", tmp_path / "src", tmp_path / "out", **chosen)
    (record,) = records["train"]
    text = json.dumps(record)
    assert not holds(text, ["773194", "1943-02-17", "Quisenberry"])
    assert record["finding"] == "clear"
    assert any("MRN, DateOfBirth, Surname" in note for note in result.report.notes)
    records, _ = run("folder", tmp_path / "src", tmp_path / "none", **chosen, identifiers="none")
    assert records["train"][0]["DateOfBirth"] == "1943-02-17"
    with pytest.raises(DataError, match="no column 'Mrn'"):
        run("folder", tmp_path / "src", tmp_path / "wrong", **chosen, identifiers="Mrn")


def test_table_of_excel_in_germany(tmp_path):
    picture(tmp_path / "src/a.png")
    content = "Datei;Befund;Größe\r\na.png;Erguß, links;3,5\r\n;;\r\n"
    (tmp_path / "src/t.csv").write_bytes(content.encode("cp1252"))
    records, result = run(
        "folder", tmp_path / "src", tmp_path / "out", image="Datei", answer="Befund", prompt="?", keep="Größe"
    )
    assert records["train"][0]["conversations"][1]["value"] == "Erguß, links"
    assert records["train"][0]["Größe"] == "3,5"
    assert not result.report.faults


def test_encoding_of_a_table_is_named_or_noted(tmp_path):
    picture(tmp_path / "src/a.png")
    (tmp_path / "src/t.csv").write_bytes("Datei;Befund\na.png;Körper\n".encode("mac_roman"))
    named = {"image": "Datei", "answer": "Befund", "prompt": "?"}
    records, _ = run("folder", tmp_path / "src", tmp_path / "guess", **named)
    assert records["train"][0]["conversations"][1]["value"] == "Kšrper"  # a word that Windows-1252 may hold, too
    assert any("--encoding" in note for note in json.loads((tmp_path / "guess/report.json").read_text())["notes"])
    out = tmp_path / "told"
    flags = ["--image", "Datei", "--answer", "Befund", "--prompt", "?", "--encoding", "mac_roman"]
    done = CliRunner().invoke(app, ["data", "convert", "folder", str(tmp_path / "src"), "--out", str(out), *flags])
    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text())
    assert report["options"]["encoding"] == "mac_roman"
    assert not any("--encoding" in note for note in report["notes"])
    assert json.loads((out / "train.jsonl").read_text())["conversations"][1]["value"] == "Körper"


def test_saved_data_set_with_images(tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(), "q": datasets.Value("string"), "a": datasets.Value("string")}
    )
    rows = {"image": [Image.new("RGB", (8, 8), (9, 0, 0))], "q": ["What?"], "a": ["red"]}
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "src"))
    records, _ = run("folder", tmp_path / "src", tmp_path / "out", image="image", question="q", answer="a")
    assert set(records) == {"train", "test"}
    assert records["test"][0]["answer"] == "red"


CHATS = {
    "llama-factory": {
        "messages": [{"role": "user", "content": "<image>q?"}, {"role": "assistant", "content": "a"}],
        "images": ["a.png"],
    },
    "ms-swift": {"query": "<image>q?", "response": "a", "images": ["a.png"]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q?"}, {"from": "gpt", "value": "a"}], "image": "a.png"},
    "alpaca": {"instruction": "q?", "input": "", "output": "a", "images": ["a.png"]},
}


@pytest.mark.parametrize("style", CHATS)
def test_chat_files_of_other_tools(tmp_path, style):
    picture(tmp_path / "src/a.png")
    write_json(tmp_path / "src/data.json", [CHATS[style], {"nothing": 1}])
    records, result = run("folder", tmp_path / "src", tmp_path / "out")
    (record,) = records["train"]
    assert record["conversations"][0]["value"].replace("\n", "") == "<image>q?"
    assert record["conversations"][1]["value"] == "a"
    assert record["image"] == ["a.png"]
    assert result.report.faults == {"no conversation in a known style": 1}


def test_reading_options_stand_in_the_records(tmp_path):
    picture(tmp_path / "src/a.png")
    write_csv(tmp_path / "src/t.csv", [["file", "answer"], ["a.png", "b"]])
    records, _ = run(
        "folder", tmp_path / "src", tmp_path / "out", image="file", prompt="?", units="HU", spacing="2,1,1"
    )
    assert records["train"][0]["read"] == {"units": "HU", "spacing": [2.0, 1.0, 1.0]}


def test_links_to_another_disk_are_followed(tmp_path):
    picture(tmp_path / "disk/a.png")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/images").symlink_to(tmp_path / "disk")
    with (tmp_path / "src/t.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["file", "answer"], ["images/a.png", "b"], ["../disk/a.png", "c"]])
    records, result = run("folder", tmp_path / "src", tmp_path / "out", image="file", prompt="?")
    assert json.dumps(records["train"][0]["image"]) == '["images/a.png"]'
    assert result.report.faults == {"path in column 'file' leaves the folder of the data": 1}


def test_deep_gray_pictures_in_cells_keep_their_values(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (12, 15)).astype(np.uint16)
    encoded = []
    for form in ("PNG", "TIFF"):
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, form)
        encoded.append(stream.getvalue())
    cut = b"\x89PNG\r\n\x1a\n" + bytes(40)  # Pillow raises a SyntaxError for it
    (tmp_path / "src").mkdir()
    rows = {"image": [*encoded, cut], "answer": ["a", "b", "c"]}
    pq.write_table(pa.table(rows), tmp_path / "src/t.parquet")
    records, result = run("folder", tmp_path / "src", tmp_path / "out", image="image", prompt="?")
    for record in records["train"]:
        np.testing.assert_array_equal(read_image(tmp_path / "out" / record["image"][0]).array, values)
    assert len(records["train"]) == 2
    assert result.report.faults == {"cell of column 'image' is neither a path nor a readable picture": 1}


def test_numbers_and_blanks_of_a_parquet_column(tmp_path):
    """A column of whole numbers with blank cells is one of floats with NaN."""
    picture(tmp_path / "src/a.png")
    rows = {"image": ["a.png"] * 2, "answer": [3.0, float("nan")], "patient": [7731942.0, 7731943.0]}
    pq.write_table(pa.table(rows), tmp_path / "src/t.parquet")
    records, result = run("folder", tmp_path / "src", tmp_path / "out", image="image", prompt="?", patient="patient")
    assert [record["conversations"][1]["value"] for record in records["train"]] == ["3"]
    assert result.report.faults == {"empty question or answer": 1}


def test_parquet_shards_of_the_hub(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 0, 0)).save(stream, "PNG")
    cells = {"image": [{"bytes": stream.getvalue(), "path": "a.png"}], "q": ["What?"], "a": ["red"]}
    (tmp_path / "src/data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002-0a1b2c3d4e", "validation-00000-of-00001"):
        pq.write_table(pa.table(cells), tmp_path / f"src/data/{name}.parquet")
    records, _ = run("folder", tmp_path / "src", tmp_path / "out", image="image", question="q", answer="a")
    assert {split: len(rows) for split, rows in records.items()} == {"train": 2, "validation": 1}
    assert len({record["id"] for record in records["train"]}) == 2


def test_paths_of_windows_are_found(tmp_path):
    picture(tmp_path / "src/images/a.png")
    write_csv(tmp_path / "src/t.csv", [["file", "answer"], ["images\\a.png", "b"]])
    records, _ = run("folder", tmp_path / "src", tmp_path / "out", image="file", prompt="?")
    assert records["train"][0]["image"] == ["images/a.png"]


def test_folder_that_names_the_patient_is_in_no_output(tmp_path):
    source = tmp_path / "QUISENBERRY_THADDEUS"
    picture(source / "a.png")
    write_csv(source / "t.csv", [["image", "answer", "PatientName"], ["a.png", "b", "Quisenberry^Thaddeus"]])
    records, _ = run("folder", source, tmp_path / "out", image="image", prompt="?")
    assert records["train"][0]["image"][0].startswith("media/")
    assert "quisenberry" not in (tmp_path / "out/report.json").read_text().lower()


@pytest.mark.parametrize("history", ["abc", [["a"]], 3, {"a": 1}])
def test_odd_history_is_a_fault_of_its_item(tmp_path, history):
    picture(tmp_path / "src/a.png")
    write_json(tmp_path / "src/data.json", [CHATS["ms-swift"] | {"history": history}, CHATS["ms-swift"]])
    records, result = run("folder", tmp_path / "src", tmp_path / "out")
    assert len(records["train"]) == 1
    assert result.report.faults == {"no conversation in a known style": 1}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": "a.png"},
    ],
)
def test_images_in_content_parts_are_found(tmp_path, part):
    picture(tmp_path / "src/a.png")
    asked = {"role": "user", "content": [part, {"type": "text", "text": "q?"}]}
    write_json(tmp_path / "src/data.json", [{"messages": [asked, {"role": "assistant", "content": "a"}]}])
    records, _ = run("folder", tmp_path / "src", tmp_path / "out")
    assert records["train"][0]["image"] == ["a.png"]
    assert records["train"][0]["conversations"][0]["value"] == "<image>\nq?"


def test_videos_are_a_fault_and_data_uris_are_not_shown(tmp_path):
    picture(tmp_path / "src/a.png")
    uri = "data:image/png;base64," + "QUJD" * 500
    items = [{"query": "<video>q?", "response": "a", "videos": ["v.mp4"]}, CHATS["ms-swift"] | {"images": [uri]}]
    write_json(tmp_path / "src/data.json", [*items, CHATS["ms-swift"]])
    records, result = run("folder", tmp_path / "src", tmp_path / "out")
    assert len(records["train"]) == 1
    assert result.report.faults == {"video or audio, which cannot be read": 1, "path of an image does not exist": 1}
    assert "QUJDQUJD" not in (tmp_path / "out/report.json").read_text()
