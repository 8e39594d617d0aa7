"""Phantoms written as SLAKE and as CT-RATE look like the data sets they imitate."""

from __future__ import annotations

import csv
import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from medmvl.data.converters import convert
from medmvl.errors import DataError
from medmvl.phantoms import (
    CT_RATE_LABELS,
    split_patients,
    write_ct_rate,
    write_dicom_series,
    write_llava_pretrain,
    write_medmnist,
    write_slake,
)
from medmvl.phantoms.texts import ON_RADIOGRAPH, caption

SIZE = (16, 32, 32)


@pytest.fixture(scope="module")
def slake(tmp_path_factory):
    root = tmp_path_factory.mktemp("slake")
    return write_slake(root, split_patients(0, {"train": 4, "val": 2, "test": 2}, SIZE, radiograph_size=64))


@pytest.fixture(scope="module")
def ct_rate(tmp_path_factory):
    root = tmp_path_factory.mktemp("ct_rate")
    return write_ct_rate(root, split_patients(0, {"train": 2, "test": 2}, SIZE), reconstructions=2)


def test_slake_has_its_files_and_its_keys(slake) -> None:
    assert {"train.json", "validate.json", "test.json", "mask.txt", "train.txt"} <= {p.name for p in slake.iterdir()}
    rows = json.loads((slake / "train.json").read_text())
    assert {row["q_lang"] for row in rows} == {"en", "zh"}
    for row in rows:
        assert (slake / "imgs" / row["img_name"]).is_file()
        assert row["answer_type"] in ("OPEN", "CLOSED")
    identifiers = [row["qid"] for name in ("train", "validate", "test") for row in _rows(slake, name)]
    assert len(set(identifiers)) == len(identifiers)


def _rows(root, name):
    return json.loads((root / f"{name}.json").read_text())


def test_slake_images_come_with_boxes_and_masks_in_their_pixels(slake) -> None:
    for folder in (slake / "imgs").iterdir():
        width, height = Image.open(folder / "source.jpg").size
        assert Image.open(folder / "mask.png").size == (width, height)
        boxes = json.loads((folder / "detection.json").read_text())
        names = [next(iter(entry)) for entry in boxes]
        assert {"Left Lung", "Right Lung", "Heart"} <= set(names)
        for entry in boxes:
            ((x, y, w, h),) = entry.values()
            assert 0 <= x < x + w <= width
            assert 0 <= y < y + h <= height


def test_closed_questions_of_slake_are_balanced(slake) -> None:
    rows = [r for name in ("train", "validate", "test") for r in _rows(slake, name) if r["q_lang"] == "en"]
    answers = [row["answer"] for row in rows if row["answer"] in ("Yes", "No")]
    assert answers.count("Yes") == answers.count("No") == len(answers) / 2


def test_ct_rate_has_its_tables(ct_rate) -> None:
    base = ct_rate / "dataset"
    with (base / "multi_abnormality_labels" / "valid_predicted_labels.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["VolumeName", *CT_RATE_LABELS]
    assert [row["VolumeName"] for row in rows][:2] == ["valid_1_a_1.nii.gz", "valid_1_a_2.nii.gz"]
    for name in ("radiology_text_reports/validation_reports.csv", "metadata/train_metadata.csv", "vqa/train_vqa.json"):
        assert (base / name).is_file()
    items = json.loads((base / "vqa" / "valid_vqa.json").read_text())
    tags = {item["conversations"][0]["value"].rsplit("<", 1)[-1] for item in items}
    assert tags == {"long_answer>", "short_answer>", "multiple_choice>", "report_generation>"}


def test_the_original_release_needs_its_metadata_to_be_in_hounsfield_units(tmp_path) -> None:
    patients = split_patients(0, {"train": 1}, SIZE)
    write_ct_rate(tmp_path, patients, fixed=False)
    image = nibabel.load(tmp_path / "dataset/train/train_1/train_1_a/train_1_a_1.nii.gz")
    assert image.header.get_zooms() == (1.0, 1.0, 1.0)
    restored = np.asarray(image.dataobj).transpose(2, 1, 0) - 1024
    assert np.array_equal(restored, patients["train"][0].volume)


def test_ct_rate_has_no_third_split(tmp_path) -> None:
    with pytest.raises(DataError, match="splits 'train' and 'valid'"):
        write_ct_rate(tmp_path, {"third": []})


def test_medmnist_has_its_arrays_and_goes_through_its_converter(tmp_path) -> None:
    patients = split_patients(0, {"train": 4, "val": 2, "test": 2}, SIZE, radiograph_size=64)
    file = write_medmnist(tmp_path / "src", patients, size=64)
    with np.load(file) as archive:
        assert archive["train_images"].shape == (4, 64, 64)
        assert archive["test_labels"].shape == (2, 14)
    result = convert("medmnist", tmp_path / "src", tmp_path / "out")
    assert result.counts == {"train": 4, "validation": 2, "test": 2}
    first = json.loads((tmp_path / "out/train.jsonl").read_text().splitlines()[0])
    assert first["labels"]["effusion"] == int("pleural effusion" in patients["train"][0].findings)
    with pytest.raises(DataError, match="sizes 28, 64, 128, 224"):
        write_medmnist(tmp_path, patients, size=100)


def test_captions_go_through_the_pretraining_converter(tmp_path) -> None:
    patients = split_patients(0, {"train": 3}, SIZE, radiograph_size=64)["train"]
    write_llava_pretrain(tmp_path / "src", patients)
    result = convert("llava-pretrain", tmp_path / "src", tmp_path / "out")
    assert result.counts == {"train": 3}
    record = json.loads((tmp_path / "out/train.jsonl").read_text().splitlines()[0])
    assert record["conversations"][1]["value"] == caption(patients[0].findings, ON_RADIOGRAPH)
    assert caption(patients[1].findings, ON_RADIOGRAPH) == (
        "Pleural effusion: no. Consolidation: no. Lung nodule: left upper lobe. Cardiomegaly: no. Emphysema: no. Pacemaker: no."
    )


def test_the_same_seed_writes_the_same_bytes_at_any_time(tmp_path, monkeypatch) -> None:
    def write(folder) -> dict[str, bytes]:
        patients = split_patients(3, {"train": 2}, SIZE, radiograph_size=64)
        write_slake(folder / "slake", patients)
        write_ct_rate(folder / "ct-rate", patients)
        write_medmnist(folder / "medmnist", patients, size=28)
        write_dicom_series(folder / "series", patients["train"][0])
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    first = write(tmp_path / "a")
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)  # a gzip or DICOM writer might note the hour
    assert write(tmp_path / "b") == first
