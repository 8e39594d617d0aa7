"""LLaVA 558k, LLaVA-Med, PathVQA and MPx-Single, in their published layouts."""

from __future__ import annotations

import io
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medmvl.data.converters.safe_pickle import load_plain_pickle
from medmvl.errors import DataError

from .helpers import picture, question, run, write_csv, write_json


def turns(first: str, answer: str = "A cat.") -> list[dict[str, str]]:
    return [{"from": "human", "value": first}, {"from": "gpt", "value": answer}]


# --- LLaVA ----------------------------------------------------------------------------------------------------


def test_llava_pretrain_wraps_the_image_and_keeps_the_text(tmp_path) -> None:
    root = tmp_path / "llava"
    picture(root / "images/00453/004539375.jpg")
    picture(root / "00001/000010000.jpg")
    items = [
        {"id": "004539375", "image": "00453/004539375.jpg", "conversations": turns("Describe it.\n<image>")},
        {"id": "000010000", "image": "00001/000010000.jpg", "conversations": turns("<image>\nWhat is it?")},
        {"id": "missing", "image": "00002/x.jpg", "conversations": turns("<image>\nWhat is it?")},
        {"id": "empty", "image": "00001/000010000.jpg", "conversations": turns("<image>\nWhat is it?", "")},
    ]
    write_json(root / "blip_laion_cc_sbu_558k.json", items)
    records, result = run("llava-pretrain", root, tmp_path / "out")
    first, second = records["train"]
    assert first["image"] == ["images/00453/004539375.jpg"]
    assert question(first) == "Describe it.\n<image>"  # after the text, as LLaVA has it too
    assert second["image"] == ["00001/000010000.jpg"]
    assert sum(result.report.faults.values()) == 2


def test_llava_med_reads_both_spellings_and_places_one_image(tmp_path) -> None:
    root = tmp_path / "llava_med"
    for name in ("1_fig01.jpg", "2_fig01.jpg"):
        picture(root / "images" / name)
    domain = {"chest_xray": False, "mri": True, "histology": False, "gross": False, "ct_scan": False}
    misspelled = {"id": "1_fig01", "image": "1_fig01.jpg", "domain": domain}
    misspelled["conversatons"] = turns("What is shown?") + turns("<image>\nAnd here?", "A brain.")
    spelled = {"id": "2_fig01", "image": "2_fig01.jpg", "conversations": turns("<image>\n<image>\nTwice?")}
    text_only = {"id": "3", "image": "", "conversations": turns("<image>\nNo picture?")}
    odd = {"id": "4", "image": "1_fig01.jpg", "conversations": turns("One?")[:1]}
    write_json(root / "llava_med_instruct_60k.json", [misspelled, spelled, text_only, odd])
    write_json(root / "llava_med_instruct_10k.json", [])
    row = {"question_id": 0, "image": "1_fig01.jpg", "text": "What?\n<image>", "gpt4_answer": "MRI.", "domain": domain}
    (root / "llava_med_eval_qa50_qa.jsonl").write_text(json.dumps(row) + "\n")
    records, result = run("llava-med", root, tmp_path / "out")
    first, second, third = records["train"]
    assert question(first) == "<image>\nWhat is shown?"
    assert question(first, 1) == "And here?"
    assert first["modality"] == "mri"
    assert question(second) == "<image>\nTwice?"
    assert question(third) == "No picture?"
    assert "image" not in third
    assert records["eval"][0]["answer"] == "MRI."
    assert any("llava_med_instruct_10k.json" in note for note in result.report.notes)
    assert result.report.faults == {"item without alternating, non-empty turns": 1}


def test_llava_med_keeps_several_images(tmp_path) -> None:
    for number in range(2):
        picture(tmp_path / f"images/{number}.jpg")
    two = ["0.jpg", "1.jpg"]
    later = [*turns("<image>\nWhat?"), *turns("<image>\nAnd here?")]
    items = [
        {"id": "first", "image": two, "conversations": turns("<image>\n<image>\nWhich is larger?")},
        {"id": "later", "image": two, "conversations": later},
        {"id": "unmarked", "image": two, "conversations": turns("Which is larger?")},
        {"id": "missing", "image": ["0.jpg", "9.jpg"], "conversations": turns("Which is larger?")},
    ]
    file = write_json(tmp_path / "mine.json", items)
    records, result = run("llava-med", file, tmp_path / "out")
    assert [record["id"] for record in records["train"]] == ["first", "later", "unmarked"]
    assert all(record["image"] == ["images/0.jpg", "images/1.jpg"] for record in records["train"])
    first, second, third = records["train"]
    assert question(first) == question(third) == "<image>\n<image>\nWhich is larger?"
    assert (question(second), question(second, 1)) == ("<image>\nWhat?", "<image>\nAnd here?")
    assert sum(result.report.faults.values()) + sum(result.report.left_out.values()) == 1


def test_one_file_can_be_named_instead_of_a_folder(tmp_path) -> None:
    picture(tmp_path / "images/1.jpg")
    item = {"id": "1", "image": "1.jpg", "conversations": turns("<image>\nWhat?"), "answer_type": "OPEN"}
    file = write_json(tmp_path / "mine.json", [item])
    records, _ = run("llava-med", file, tmp_path / "out")
    assert records["train"][0]["image"] == ["images/1.jpg"]
    assert records["train"][0]["answer_type"] == "OPEN"


# --- PathVQA --------------------------------------------------------------------------------------------------


def official_path_vqa(root) -> None:
    rows = {
        "train": [
            {
                "img_id": "train_0001",
                "sent": "Is it red?",
                "question_id": 1,
                "label": {"yes": 1},
                "answer_type": "yes/no",
            }
        ],
        "val": [
            {"img_id": "val_0001", "sent": "What?", "question_id": 2, "label": {"a nucleus": 1}, "answer_type": "other"}
        ],
        "test": [
            {"img_id": "test_0001", "sent": "How many?", "question_id": 3, "label": {"2": 1}, "answer_type": "number"},
            {"img_id": "test_0002", "sent": "Where?", "question_id": 4, "label": {}, "answer_type": "other"},
        ],
    }
    for split, questions in rows.items():
        picture(root / f"pvqa/images/{split}/{split}_0001.jpg", mode="CMYK" if split == "test" else "RGB")
        file = root / f"pvqa/qas/{split}_vqa.pkl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(questions, protocol=2))


def test_path_vqa_from_the_official_pickles(tmp_path) -> None:
    official_path_vqa(tmp_path / "src")
    records, result = run("path-vqa", tmp_path / "src", tmp_path / "out")
    assert records["train"][0]["answer_type"] == "CLOSED"
    assert records["validation"][0]["answer"] == "a nucleus"
    assert records["test"][0]["answer_type"] == "OPEN"
    assert records["test"][0]["patient"] == "test_0001"
    assert result.report.faults == {"empty question or answer": 1}


def test_path_vqa_from_the_plain_pickles(tmp_path) -> None:
    picture(tmp_path / "src/images/train/train_0422.jpg")
    file = tmp_path / "src/qas/train/train_qa.pkl"
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps([{"image": "train_0422", "question": "Is it?", "answer": "No"}]))
    records, result = run("path-vqa", tmp_path / "src", tmp_path / "out")
    assert records["train"][0]["answer_type"] == "CLOSED"
    assert any("answer type" in note for note in result.report.notes)


class Evil:
    """A pickle of this runs a command when it is loaded the usual way."""

    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(DataError, match=r"wants to import (posix|os)\.system"):
        load_plain_pickle(tmp_path / "evil.pkl")
    (tmp_path / "array.pkl").write_bytes(pickle.dumps(np.zeros(2)))
    with pytest.raises(DataError, match="wants to import numpy"):
        load_plain_pickle(tmp_path / "array.pkl")
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps([{"a": 1}] * 50)[:20])
    with pytest.raises(DataError, match="not a readable pickle"):
        load_plain_pickle(tmp_path / "cut.pkl")
    assert not (tmp_path / "hacked").exists()


def test_path_vqa_from_the_mirror_stores_a_repeated_image_once(tmp_path) -> None:
    def encoded(mode: str, shade: int) -> dict[str, bytes]:
        buffer = io.BytesIO()
        Image.new(mode, (8, 8), shade if mode == "L" else (shade,) * len(mode)).save(buffer, "JPEG")
        return {"bytes": buffer.getvalue(), "path": "x.jpg"}

    gray, cmyk = encoded("L", 40), encoded("CMYK", 90)
    rows = [(gray, "Is it?", "Yes"), (gray, "What?", "fat"), (cmyk, "What?", "no"), ({"bytes": b"x"}, "What?", "y")]
    table = pa.table({key: [row[i] for row in rows] for i, key in enumerate(("image", "question", "answer"))})
    (tmp_path / "src/data").mkdir(parents=True)
    pq.write_table(table, tmp_path / "src/data/test-00000-of-00001.parquet")
    records, result = run("path-vqa", tmp_path / "src", tmp_path / "out")
    kinds = [record["answer_type"] for record in records["test"]]
    assert kinds == ["CLOSED", "OPEN", "CLOSED"]
    paths = [record["image"][0] for record in records["test"]]
    assert paths[0] == paths[1] != paths[2]
    assert Image.open(tmp_path / "out" / paths[2]).mode == "RGB"
    assert result.media_root == tmp_path / "out"
    assert result.report.faults == {"image is not readable": 1}


# --- MPx-Single -----------------------------------------------------------------------------------------------


def test_mpx_single_keeps_the_types_asked_for(tmp_path) -> None:
    root = tmp_path / "src"
    picture(root / "MedPix-Images/synpic1.jpg")
    header = ["", "name", "type", "context", "extra"]
    rows = [
        ["0", "synpic1.jpg", "caption", "A mass\nin the lung.", ""],
        ["1", "synpic1.jpg", "modality", "CT - noncontrast", ""],
        ["2", "synpic2.jpg", "caption", "Gone.", ""],
        ["3", "synpic1.jpg", "plane", "", ""],
        ["4", "synpic1.jpg", "riddle", "x", ""],
    ]
    write_csv(root / "MedPix_single_train.csv", [header, *rows])
    write_csv(root / "MedPix_single_test.csv", [header, rows[0]])
    records, result = run("mpx-single", root, tmp_path / "out")
    assert [r["conversations"][1]["value"] for r in records["train"]] == ["A mass in the lung."]
    assert question(records["test"][0]) == "<image>\nDescribe this input image."
    assert sum(result.report.faults.values()) == 2
    every, _ = run("mpx-single", root, tmp_path / "all", tasks="caption,modality,plane")
    assert [r["question_type"] for r in every["train"]] == ["caption", "modality"]
