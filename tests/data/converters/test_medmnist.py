"""MedMNIST: every subset, every size, multi-label, and the traps of its class names."""

from __future__ import annotations

import numpy as np
import pytest

from medmvl.data.converters.medmnist import iter_npz_rows, question
from medmvl.data.converters.medmnist_subsets import SUBSETS, spoken
from medmvl.errors import DataError
from medmvl.imaging import read_image, read_volume

from .helpers import question as asked
from .helpers import run

COLOR = ("pathmnist", "dermamnist", "retinamnist", "bloodmnist")


def write_npz(root, flag: str, size: int = 28, count: int = 2) -> None:
    subset = SUBSETS[flag]
    shape = (size,) * 3 if subset.volume else (size, size, 3) if flag in COLOR else (size, size)
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 255, (count, *shape), dtype=np.uint8)
        width = len(subset.classes) if subset.multi_label else 1
        arrays[f"{split}_labels"] = np.zeros((count, width), dtype=np.uint8)
    root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(root / (f"{flag}.npz" if size == 28 else f"{flag}_{size}.npz"), **arrays)


@pytest.mark.parametrize("flag", list(SUBSETS))
def test_every_subset_becomes_questions_that_list_its_classes(flag: str, tmp_path) -> None:
    write_npz(tmp_path / "src", flag)
    records, _ = run("medmnist", tmp_path / "src", tmp_path / "out", flags=flag)
    assert {split: len(rows) for split, rows in records.items()} == {"train": 2, "validation": 2, "test": 2}
    record = records["test"][0]
    text = asked(record)
    positions = [text.find(spoken(name)) for name in SUBSETS[flag].classes]
    assert -1 not in positions
    assert record["dataset"] == flag
    assert record["answer"] == ("no finding" if SUBSETS[flag].multi_label else spoken(SUBSETS[flag].classes[0]))


def test_there_are_18_subsets_with_the_published_class_counts() -> None:
    counts = {flag: len(subset.classes) for flag, subset in SUBSETS.items()}
    assert len(counts) == 18
    assert counts["chestmnist"] == 14
    assert [counts[f] for f in ("pathmnist", "organamnist", "organmnist3d", "bloodmnist", "octmnist")] == [
        9,
        11,
        11,
        8,
        4,
    ]
    assert SUBSETS["breastmnist"].classes[0] == "malignant"
    assert SUBSETS["organmnist3d"].classes != SUBSETS["organamnist"].classes


def test_organ_names_are_spoken_and_options_stay_apart() -> None:
    assert spoken("kidney-left") == "left kidney"
    assert spoken("cancer-associated stroma") == "cancer-associated stroma"
    assert question(SUBSETS["organsmnist"]).endswith("pancreas, or spleen?")
    assert "; or platelet?" in question(SUBSETS["bloodmnist"])  # names with commas are kept apart by semicolons


def test_the_largest_size_is_taken_unless_one_is_asked_for(tmp_path) -> None:
    write_npz(tmp_path / "src", "dermamnist", 28, 1)
    write_npz(tmp_path / "src", "dermamnist", 64, 1)
    records, result = run("medmnist", tmp_path / "src", tmp_path / "large")
    image = read_image(tmp_path / "large" / records["test"][0]["image"][0])
    assert image.array.shape == (64, 64, 3)
    assert any("CC BY-NC" in note for note in result.report.notes)
    records, _ = run("medmnist", tmp_path / "src", tmp_path / "small", size="28")
    assert read_image(tmp_path / "small" / records["test"][0]["image"][0]).array.shape == (28, 28, 3)
    with pytest.raises(DataError, match="not there in size 224; there is: 28, 64"):
        run("medmnist", tmp_path / "src", tmp_path / "none", size="224")


def test_a_volume_is_read_as_arbitrary_units(tmp_path) -> None:
    write_npz(tmp_path / "src", "nodulemnist3d", 28, 1)
    records, _ = run("medmnist", tmp_path / "src/nodulemnist3d.npz", tmp_path / "out")
    volume = read_volume(tmp_path / "out" / records["test"][0]["image3d"][0], spacing=(1, 1, 1), orientation="SPL")
    assert volume.units == "arbitrary"
    assert volume.array.shape == (28, 28, 28)


def test_findings_of_a_multi_label_row_are_named_together(tmp_path) -> None:
    write_npz(tmp_path / "src", "chestmnist", 28, 1)
    with np.load(tmp_path / "src/chestmnist.npz") as archive:
        arrays = dict(archive)
    arrays["test_labels"][0, [1, 10]] = 1
    np.savez(tmp_path / "src/chestmnist.npz", **arrays)
    records, _ = run("medmnist", tmp_path / "src", tmp_path / "out")
    record = records["test"][0]
    assert record["answer"] == "cardiomegaly; emphysema"
    assert sum(record["labels"].values()) == 2


def test_a_label_outside_the_classes_is_a_fault(tmp_path) -> None:
    write_npz(tmp_path / "src", "pneumoniamnist", 28, 2)
    with np.load(tmp_path / "src/pneumoniamnist.npz") as archive:
        arrays = dict(archive)
    arrays["test_labels"][1] = 2
    np.savez(tmp_path / "src/pneumoniamnist.npz", **arrays)
    records, result = run("medmnist", tmp_path / "src", tmp_path / "out")
    assert len(records["test"]) == 1
    assert result.report.faults == {"label is not one of the classes": 1}


def test_rows_are_streamed_and_equal_the_array(tmp_path) -> None:
    array = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
    np.savez_compressed(tmp_path / "x.npz", train_images=array)
    assert np.array_equal(np.stack(list(iter_npz_rows(tmp_path / "x.npz", "train_images"))), array)


def test_half_a_file_is_named(tmp_path) -> None:
    write_npz(tmp_path / "src", "octmnist", 28, 4)
    file = tmp_path / "src/octmnist.npz"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"octmnist\.npz is not a whole MedMNIST file"):
        run("medmnist", tmp_path / "src", tmp_path / "out")
    with pytest.raises(DataError, match="Did you mean 'octmnist'"):
        run("medmnist", tmp_path / "src", tmp_path / "out", flags="octmist")
