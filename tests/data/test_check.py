"""`data check` lists all faults of a file at once."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image as PILImage
from typer.testing import CliRunner

from imaging.dicom_writing import write_series
from medmvl.cli.main import app
from medmvl.data.check import check_records
from medmvl.data.converters import convert
from medmvl.data.formats import write_records
from medmvl.data.roots import MediaRoots, records_files
from medmvl.errors import DataError
from medmvl.files import write_json


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
        check_records(tmp_path / "d.jsonl", roots=MediaRoots(image=tmp_path / "nowhere"))


def test_pixels_are_read_once_per_file_on_request(tmp_path):
    pytest.importorskip("medmvl.imaging.read")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    write_records(tmp_path / "d.jsonl", [record("a", "bad.png"), record("b", "bad.png")])
    assert check_records(tmp_path / "d.jsonl") == []
    faults = check_records(tmp_path / "d.jsonl", read_media=True)
    assert [fault.id for fault in faults] == ["a", "b"]
    assert "bad.png" in faults[0].message


def test_base64_never_stands_in_a_message(tmp_path):
    pixels = "iVBORw0KGgo" * 40
    turns = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]
    rows = [
        {"id": "1", "conversations": turns, "image": [pixels]},
        {"id": "2", "conversations": turns, "image": [pixels[:99]]},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    faults = check_records(tmp_path / "t.jsonl")
    assert len(faults) == 2
    assert all("base64" in fault.message and "iVBORw0KGgo" not in fault.message for fault in faults)


def with_system(text):
    return {"id": text, "conversations": [{"from": "system", "value": text}, *record("x")["conversations"]]}


DROPPING = (
    "{%- for m in messages -%}{%- if m['role'] == 'user' -%}USER: {{ m['content'] }}{%- elif m['role'] == 'assistant' -%}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{%- endif -%}{%- endfor -%}"
)
REFUSING = "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}" + DROPPING


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (DROPPING, "has no place for system turns: the model does not read those of 3 records (first: Be brief.)"),
        (REFUSING, "refuses conversations with a system turn: 3 records (first: Be brief.)"),
        (None, ""),
    ],
    ids=["dropping", "refusing", "reading"],
)
def test_system_turns_that_a_template_leaves_out_are_counted(model_folder, tmp_path, template, said):
    shutil.copytree(model_folder, tmp_path / "model")
    if template is not None:
        (tmp_path / "model" / "chat_template.jinja").write_text(template)
    rows = [record("a"), with_system("Be brief."), with_system("What"), with_system("USER")]
    write_records(tmp_path / "d.jsonl", rows)
    arguments = ["data", "check", str(tmp_path / "d.jsonl"), "--model", str(tmp_path / "model")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert ("warning" in done.output) == bool(said)
    assert said in done.output.replace("\n", " ")


def test_system_turns_are_checked_against_the_templates_of_a_recipe(tmp_path):
    write_records(tmp_path / "d.jsonl", [with_system("Be brief.")])
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    stages = [{"name": name, "train": {"llm": "full"}, "lr": 1e-3, "max_steps": 1, "batch_size": 1} for name in "ab"]
    stages[0]["template"], stages[1]["template"] = "pretrain", "chatml"
    recipe = {
        "name": "r",
        "data_root": str(tmp_path),
        "model": {
            "llm": {
                "config": {"model_type": "llama", **layers},
                "tokenizer": {"vocab_size": 300},
            }
        },
        "data": {"d": {"path": "d.jsonl"}},
        "stages": stages,
    }
    write_json(tmp_path / "r.yaml", recipe)  # JSON is YAML
    done = CliRunner().invoke(app, ["data", "check", str(tmp_path / "d.jsonl"), "--recipe", str(tmp_path / "r.yaml")])
    assert done.exit_code == 0, done.output
    warnings = [line for line in done.output.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "stage 'a' has no place for system turns" in warnings[0]


def test_warnings_of_images_are_shown_and_many_alike_are_counted(tmp_path):
    exif = PILImage.Exif()
    exif[274] = 6
    for number in range(9):
        PILImage.fromarray(np.full((4, 5), number, np.uint8)).save(tmp_path / f"x{number}.png", exif=exif)
    write_records(tmp_path / "d.jsonl", [record(str(number), f"x{number}.png") for number in range(9)])
    done = CliRunner().invoke(app, ["data", "check", str(tmp_path / "d.jsonl")])
    assert done.exit_code == 0
    assert done.output.count("x3.png: EXIF orientation 6 not applied") == 1
    assert "warning: 4 more files: EXIF orientation 6 not applied" in done.output


def test_file_that_is_named_as_image_and_as_volume_has_the_fault_of_each(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((2, 3, 4), np.uint8))
    volume = record("b") | {"image3d": "v.npy"}
    volume["conversations"][0]["value"] = "<image3d> What?"
    write_records(tmp_path / "d.jsonl", [record("a", "v.npy"), volume])
    assert [fault.id for fault in check_records(tmp_path / "d.jsonl", read_media=True)] == ["a"]


def test_messages_do_not_quote_what_a_file_holds(tmp_path, monkeypatch):
    def read(*_: object, **__: object) -> None:
        raise ValueError("could not convert string to float: 'QUISENBERRY^THADDEUS'")

    monkeypatch.setattr("medmvl.imaging.read_image", read)
    (tmp_path / "x.png").write_bytes(b"x")
    write_records(tmp_path / "d.jsonl", [record("a", "x.png")])
    (fault,) = check_records(tmp_path / "d.jsonl", read_media=True)
    assert "x.png cannot be read (ValueError)" in fault.message
    assert "QUISENBERRY" not in fault.message
    (tmp_path / "t.jsonl").write_bytes(b"QUISENBERRY^THADDEUS;1943")
    with pytest.raises(DataError, match="neither a JSON array") as caught:
        check_records(tmp_path / "t.jsonl")
    assert "QUISENBERRY" not in str(caught.value)


# --- several files, and a line for each faulty file --------------------------------------------------------------------


@pytest.fixture
def converted(tmp_path, monkeypatch):
    """A conversion of two patients whose folders bear their names; the series of the first one lacks a slice."""
    monkeypatch.setenv("MEDMVL_PSEUDONYM_KEY", str(tmp_path / "keys/key"))
    rows = ["patient,ct,question,answer,split"]
    for name in ("QUISENBERRY", "ZELLWEGER"):
        hu = np.zeros((6, 4, 5), np.int16)
        (tmp_path / "export" / name).mkdir(parents=True)
        write_series(tmp_path / "export" / name, hu, shuffle=False)
        split = "train" if name == "ZELLWEGER" else "validation"
        rows += [f"{name},{name},Is question {number} asked?,Yes,{split}" for number in range(5)]
    (tmp_path / "export/QUISENBERRY/0003.dcm").unlink()
    (tmp_path / "export/table.csv").write_text("\n".join(rows))
    options = {"volume": "ct", "question": "question", "patient": "patient", "split": "split"}
    convert("folder", tmp_path / "export", tmp_path / "out", options=options)
    return tmp_path


def test_folder_of_a_conversion_is_checked_with_one_line_per_faulty_series(converted):
    done = CliRunner().invoke(app, ["data", "check", str(converted / "out")])
    assert done.exit_code == 2
    lines = [line for line in done.output.splitlines() if "is missing" in line]
    assert len(lines) == 1
    assert lines[0].startswith("validation.jsonl, 5 records ('table-2', 'table-3', 'table-4', ...): media/")
    assert f"(linked from {converted / 'export/QUISENBERRY'})" in lines[0]
    assert "1 slice is missing: the usual step is 2 mm, but it is 4 mm between 00002.dcm" in lines[0]
    assert "--gaps fill" in lines[0]
    assert "train.jsonl: 5 records, no fault." in done.output
    assert "validation.jsonl: faults in 5 of 5 records (1 faulty image or volume)." in done.output


def test_original_folder_is_printed_only_where_the_key_is(converted, monkeypatch):
    monkeypatch.setenv("MEDMVL_PSEUDONYM_KEY", str(converted / "elsewhere/key"))
    done = CliRunner().invoke(app, ["data", "check", str(converted / "out")])
    assert "1 slice is missing" in done.output
    assert "QUISENBERRY" not in done.output
    kept = [path for path in (converted / "out").rglob("*") if path.is_file() and path.suffix != ".dcm"]
    assert all("QUISENBERRY" not in path.read_text() for path in kept)
    assert (converted / "keys/key.origins.jsonl").stat().st_mode & 0o777 == 0o600


def test_several_files_are_checked_before_the_command_fails(tmp_path):
    write_records(tmp_path / "a.jsonl", [record("a", "gone.png"), record("b", "gone.png")])
    write_records(tmp_path / "b.jsonl", [record("c")])
    done = CliRunner().invoke(app, ["data", "check", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert done.exit_code == 2
    assert done.output.count("does not exist below") == 1
    assert "b.jsonl: 1 record, no fault." in done.output


def test_folder_that_is_no_conversion_is_refused(tmp_path):
    with pytest.raises(DataError, match="without the report.json of `medmvl data convert`"):
        records_files(tmp_path)
