"""CT-RATE: four tasks in both forms, both releases of the volumes, and the traps."""

from __future__ import annotations

import csv
import json

import nibabel
import numpy as np
import pytest

from medmvl.data.converters import convert
from medmvl.imaging import read_volume
from medmvl.phantoms import CT_RATE_LABELS, save_nifti, split_patients, write_ct_rate

from .helpers import question, run, write_json

SIZE = (12, 24, 24)


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "src"
    return write_ct_rate(root, split_patients(0, {"train": 2, "test": 2}, SIZE), reconstructions=2)


def edit_vqa(source, change) -> None:
    """Rewrite the valid questions after `change` has worked on the list in place."""
    file = source / "dataset/vqa/valid_vqa.json"
    items = json.loads(file.read_text())
    change(items)
    write_json(file, items)


def test_tags_are_removed_and_tasks_and_patients_are_known(source, tmp_path) -> None:
    records, _ = run("ct-rate", source, tmp_path / "out")
    texts = [turn["value"] for rows in records.values() for r in rows for turn in r["conversations"]]
    assert not any("_answer>" in t or "_generation>" in t or "<image>" in t for t in texts)
    for rows in records.values():
        assert {record["task"] for record in rows} == {"long", "short", "choice", "report"}
    assert {r["patient"] for r in records["valid"]} == {"valid_1", "valid_2"}
    assert {r["scan"] for r in records["train"]} == {"train_1_a", "train_2_a"}


def test_train_is_dialogs_and_valid_single_questions(source, tmp_path) -> None:
    records, _ = run("ct-rate", source, tmp_path / "out", tasks="short")
    assert all(len(r["conversations"]) > 2 and "answer" not in r for r in records["train"])
    assert all(len(r["conversations"]) == 1 and r["answer"] for r in records["valid"])
    assert all(question(r).startswith("<image3d>\n") for r in records["valid"])
    closed = [r for r in records["valid"] if r["answer_type"] == "CLOSED"]
    assert {r["answer"] for r in closed} == {"Yes", "No"}
    assert records["valid"][1]["id"].endswith("_1")


def test_the_other_forms_keep_history_or_split_the_training_items(source, tmp_path) -> None:
    records, _ = run("ct-rate", source, tmp_path / "out", tasks="choice", train_form="split", valid_form="dialog")
    assert all(len(r["conversations"]) == 2 for r in records["train"])
    lengths = [len(r["conversations"]) for r in records["valid"]]
    assert lengths[:3] == [1, 3, 5]
    assert all(r["conversations"][-1]["from"] == "human" for r in records["valid"])


def test_reports_carry_the_18_labels_and_come_from_the_csv_too(source, tmp_path) -> None:
    from_json, _ = run("ct-rate", source, tmp_path / "a", tasks="report")
    from_csv, _ = run("ct-rate", source, tmp_path / "b", tasks="report", reports="csv")
    (source / "dataset/vqa/train_vqa.json").unlink()
    (source / "dataset/vqa/valid_vqa.json").unlink()
    without_json, _ = run("ct-rate", source, tmp_path / "c", tasks="report")
    for records in (from_json, from_csv, without_json):
        assert len(records["valid"]) == 4
        record = records["valid"][0]
        assert record["answer"].startswith("Findings: ")
        assert " Impression: " in record["answer"]
        assert tuple(record["labels"]) == CT_RATE_LABELS
    assert [r["answer"] for r in from_csv["valid"]] == [r["answer"] for r in from_json["valid"]]


def test_not_given_is_no_report(source, tmp_path) -> None:
    file = source / "dataset/radiology_text_reports/validation_reports.csv"
    lines = file.read_text().splitlines()
    lines[1] = "valid_1_a_1.nii.gz,,,Not given.,Not given."
    lines[2] = "valid_1_a_2.nii.gz,,,Not given.,Clear lungs."
    file.write_text("\n".join(lines) + "\n")
    records, result = run("ct-rate", source, tmp_path / "out", tasks="report", reports="csv")
    assert records["valid"][0]["answer"] == "Impression: Clear lungs."
    assert result.report.faults["report is empty"] == 1


def test_traps_of_the_vqa_file(source, tmp_path) -> None:
    def change(items) -> None:
        article = [{"from": "human", "value": "What is CT?<long_answer>", "type": "conversation"}]
        items.append({"id": "long_answer_9", "conversations": [*article, {"from": "gpt", "value": "A scan."}]})
        spaced = {"from": "human", "value": "<image>\n Which?<provided><multiple_choice>", "type": "multiple_choice"}
        answer = {"from": "gpt", "value": "(b) text\nwith a newline"}
        items.append({"id": "multiple_choice_9", "image": "valid_1_a_1.nii.gz", "conversations": [spaced, answer]})
        empty = {"from": "human", "value": "<image>\nWhat?<short_answer>"}
        conversation = [empty, {"from": "gpt", "value": " "}]
        items.append({"id": "short_answer_9", "image": "valid_1_a_1.nii.gz", "conversations": conversation})
        items.append({"id": "short_answer_10", "image": "valid_7_a_1.nii.gz", "conversations": conversation})
        items.append({"id": "riddle_1", "image": "valid_1_a_1.nii.gz", "conversations": conversation[:1]})

    edit_vqa(source, change)
    records, result = run("ct-rate", source, tmp_path / "out")
    by_id = {record["id"]: record for record in records["valid"]}
    assert "image3d" not in by_id["valid_long_answer_9"]
    assert question(by_id["valid_multiple_choice_9"]) == "<image3d>\nWhich?"
    assert result.report.faults["empty question or answer"] == 1
    assert result.report.faults["volume is missing"] == 1
    dropped, kept = run("ct-rate", source, tmp_path / "out2", text_only=False)
    assert "valid_long_answer_9" not in {record["id"] for record in dropped["valid"]}
    assert kept.report.left_out["text-only item"] == 1


def test_volumes_that_are_no_chest_and_further_reconstructions_are_left_out(source, tmp_path) -> None:
    listed = "/data/whole/path/valid_1_a_1.nii.gz\n"
    (source / "dataset/metadata/no_chest_valid.txt").write_text(listed)
    records, result = run("ct-rate", source, tmp_path / "out", tasks="report", reconstructions="first")
    assert [r["image3d"][0].rsplit("/", 1)[-1] for r in records["valid"]] == ["valid_2_a_1.nii.gz"]
    assert result.report.left_out["not a chest CT (no_chest list)"] == 1


def test_the_original_release_is_written_in_hounsfield_units_with_true_spacing(tmp_path) -> None:
    patients = split_patients(0, {"train": 1}, SIZE)
    source = write_ct_rate(tmp_path / "src", patients, fixed=False)
    records, result = run("ct-rate", source, tmp_path / "out", tasks="report")
    assert result.media_root == tmp_path / "out"
    volume = read_volume(result.media_root / records["train"][0]["image3d"][0])
    phantom = patients["train"][0]
    assert volume.units == "HU"
    assert np.allclose(volume.spacing, phantom.spacing, atol=1e-3)
    assert np.array_equal(np.asarray(volume.array, dtype=int), phantom.volume.astype(int))


def shift(split_folder) -> None:
    """Store raw values under the right headers, as a fixed release might."""
    for file in split_folder.rglob("*.nii.gz"):
        image = nibabel.load(file)
        shifted = np.asarray(image.dataobj) + np.int16(1024)
        nibabel.save(nibabel.Nifti1Image(shifted, image.affine), file)


def test_fixed_release_outside_hu_is_rescaled_and_noted(source, tmp_path) -> None:
    shift(source / "dataset/train_fixed")
    records, result = run("ct-rate", source, tmp_path / "out", tasks="report")
    phantom = split_patients(0, {"train": 2}, SIZE)["train"][0]
    for split in ("train", "valid"):  # one root for both, though only one needed it
        volume = read_volume(result.media_root / records[split][0]["image3d"][0])
        assert volume.units == "HU"
        assert np.allclose(volume.spacing, phantom.spacing, atol=1e-3)
    assert result.media_root == tmp_path / "out"
    assert any("slope and intercept of the metadata table were applied" in note for note in result.report.notes)


@pytest.mark.parametrize("where", ["original", "fixed"])
def test_volume_in_hounsfield_units_is_never_rescaled_again(where, tmp_path) -> None:
    """One volume in HU among stored ones, in either folder, with its row in the metadata table."""
    patients = split_patients(0, {"train": 3}, SIZE)
    source = write_ct_rate(tmp_path / "src", patients, fixed=where == "fixed")
    folder = source / ("dataset/train" if where == "original" else "dataset/train_fixed")
    if where == "fixed":
        shift(folder)
    save_nifti(folder / "train_2/train_2_a/train_2_a_1.nii.gz", patients["train"][1])
    records, result = run("ct-rate", source, tmp_path / "out", tasks="report")
    for record, phantom in zip(records["train"], patients["train"], strict=True):
        volume = read_volume(result.media_root / record["image3d"][0])
        np.testing.assert_array_equal(np.asarray(volume.array, dtype=int), phantom.volume.astype(int))
    assert any("in HU already were used as they are" in note for note in result.report.notes)


def test_volume_of_which_the_values_do_not_tell_is_a_fault(tmp_path) -> None:
    """Stored values with a constant padding of -2000."""
    patients = split_patients(0, {"train": 2}, SIZE)
    source = write_ct_rate(tmp_path / "src", patients, fixed=False)
    file = source / "dataset/train/train_2/train_2_a/train_2_a_1.nii.gz"
    image = nibabel.load(file)
    padded = np.asarray(image.dataobj).copy()
    padded[:2] = -2000
    nibabel.save(nibabel.Nifti1Image(padded, image.affine), file)
    records, result = run("ct-rate", source, tmp_path / "out", tasks="report")
    assert len(records["train"]) == 1
    assert "whether the volume is in HU already cannot be told from its values" in result.report.faults


@pytest.mark.parametrize("slope", ["", "nan", "1,0", "0"])
def test_missing_slope_of_the_metadata_table_is_a_fault(slope, tmp_path) -> None:
    source = write_ct_rate(tmp_path / "src", split_patients(0, {"train": 2}, SIZE), fixed=False)
    table = source / "dataset/metadata/train_metadata.csv"
    with table.open(newline="") as handle:
        header, *rows = list(csv.reader(handle))
    rows[0][header.index("RescaleSlope")] = slope
    with table.open("w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    records, result = run("ct-rate", source, tmp_path / "out", tasks="report")
    assert len(records["train"]) == 1
    assert result.report.faults == {"volume has no row with slope and intercept in the metadata table": 1}


def test_missing_metadata_table_keeps_volumes_and_is_noted(source, tmp_path) -> None:
    shift(source / "dataset/valid_fixed")
    for file in (source / "dataset/metadata").glob("*.csv"):
        file.unlink()
    result = convert("ct-rate", source, tmp_path / "out")
    assert result.media_root == source
    assert any("may not be in HU" in note for note in result.report.notes)


def test_an_unreadable_original_volume_is_a_fault(tmp_path) -> None:
    source = write_ct_rate(tmp_path / "src", split_patients(0, {"train": 2}, SIZE), fixed=False)
    (source / "dataset/train/train_1/train_1_a/train_1_a_1.nii.gz").write_bytes(b"half")
    records, result = run("ct-rate", source, tmp_path / "out", tasks="report")
    assert len(records["train"]) == 1
    assert sum(result.report.faults.values()) == 1


def test_a_damaged_volume_does_not_stop_the_look_at_the_release(source, tmp_path) -> None:
    first = source / "dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz"
    data = bytearray(first.read_bytes())
    data[40:80] = bytes(40)  # inside of the deflated stream: zlib, not gzip, complains
    first.write_bytes(bytes(data))
    records, _ = run("ct-rate", source, tmp_path / "out", tasks="report")
    assert records["train"]


def test_ready_npy_volumes_are_found_by_folder(source, tmp_path) -> None:
    for split in ("train", "valid"):
        for file in (source / f"dataset/{split}_fixed").rglob("*.nii.gz"):
            inside = file.relative_to(source / f"dataset/{split}_fixed")
            target = source / "dataset/npy" / split / str(inside).replace(".nii.gz", ".npy")
            target.parent.mkdir(parents=True, exist_ok=True)
            np.save(target, np.asarray(nibabel.load(file).dataobj).transpose(2, 1, 0))
    records, _ = run("ct-rate", source, tmp_path / "out", tasks="report", folder="npy/{split}")
    assert records["train"][0]["image3d"] == ["dataset/npy/train/train_1/train_1_a/train_1_a_1.npy"]
