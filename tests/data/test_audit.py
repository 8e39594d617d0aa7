"""The audit finds what two files share, and nothing in clean data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmvl.data.audit import audit
from medmvl.data.converters import convert
from medmvl.data.perceptual import SIDE, NearIndex, difference_hash, likeness
from medmvl.errors import DataError
from medmvl.phantoms import draw_patient, split_patients, write_slake


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Converted phantoms: a folder with train, validation and test, and its media below raw/."""
    root = tmp_path_factory.mktemp("drawn")
    write_slake(root / "raw", split_patients(0, {"train": 6, "val": 2, "test": 4}, (16, 32, 32)))
    convert("slake", root / "raw", root / "data")
    return root


@pytest.fixture
def slake(drawn, tmp_path):
    """A copy of them to spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "copy"))


def files(root):
    return [root / "data" / f"{split}.jsonl" for split in ("train", "validation", "test")]


def append(file, **changes) -> None:
    """Repeat the file's first record with changes."""
    record = json.loads(file.read_text().splitlines()[0]) | changes
    with file.open("a") as handle:
        handle.write(json.dumps(record) + "\n")


def kinds(result) -> list[str]:
    return sorted({finding.kind for finding in result.leaks})


def test_clean_splits_have_no_leak(slake) -> None:
    result = audit(files(slake))
    assert result.leaks == []
    assert result.media == 12
    assert result.records["data/test.jsonl"] > 0


def test_a_patient_in_two_splits_is_found_but_not_named(slake) -> None:
    append(files(slake)[2], id="stray", patient="xmlab0")
    result = audit(files(slake))
    assert kinds(result) == ["patient"]
    (leak,) = result.leaks
    assert leak.count == 1
    assert "stray" in leak.describe()
    assert "xmlab0" not in leak.describe().replace("slake-xmlab0", "")


def test_patients_of_two_data_sets_may_have_one_name(slake, tmp_path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    row = {"id": "1", "conversations": [{"from": "human", "value": "Q?"}], "answer": "A", "patient": "xmlab0"}
    (other / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert audit([files(slake)[0], other / "train.jsonl"]).leaks == []


def test_a_copied_file_and_a_recompressed_one_are_found(slake) -> None:
    images = slake / "raw/imgs"
    shutil.copy(images / "xmlab0/source.jpg", images / "xmlab8/source.jpg")
    Image.open(images / "xmlab1/source.jpg").resize((100, 100)).save(images / "xmlab9/source.jpg", quality=60)
    result = audit(files(slake))
    assert kinds(result) == ["near-duplicate image", "same file"]
    assert all(leak.count == 1 for leak in result.leaks)
    assert kinds(audit(files(slake), pixels=False)) == []


def test_one_path_in_two_splits_is_the_same_file(slake) -> None:
    append(files(slake)[1], id="again", image=["imgs/xmlab0/source.jpg"], patient=None)
    assert kinds(audit(files(slake), pixels=False)) == ["same file"]
    assert kinds(audit(files(slake))) == ["same file"]


def test_repeated_record_in_one_file_is_no_leak(slake) -> None:
    append(files(slake)[0], id="twice")
    result = audit(files(slake))
    assert result.leaks == []
    assert [finding.kind for finding in result.findings] == ["same record"]


def test_missing_media_are_listed_and_missing_files_refused(slake) -> None:
    (slake / "raw/imgs/xmlab0/source.jpg").unlink()
    assert len(audit(files(slake)).unreadable) == 1
    with pytest.raises(DataError, match="does not exist"):
        audit([slake / "nothing.jsonl"])


def test_likeness_tells_patients_apart() -> None:
    radiographs = [draw_patient(4, index).radiograph for index in range(8)]
    for number, radiograph in enumerate(radiographs):
        small = np.asarray(Image.fromarray(radiograph).resize((90, 90)))
        assert likeness(radiograph, small) > 0.97
        assert all(likeness(radiograph, other) < 0.96 for other in radiographs[number + 1 :])


def test_the_index_finds_exactly_what_comparing_all_finds() -> None:
    rng = np.random.default_rng(0)
    base = rng.random((20, SIDE * SIDE)) < 0.5
    hashes = [row ^ (rng.random(SIDE * SIDE) < 0.03) for row in base for _ in range(3)]
    index = NearIndex(12)
    for number, bits in enumerate(hashes):
        expected = [i for i in range(number) if (hashes[i] ^ bits).sum() <= 12]
        assert index.add(bits) == expected


def test_an_empty_picture_has_no_hash() -> None:
    assert difference_hash(np.full((50, 50), 7, dtype=np.uint8)) is None
