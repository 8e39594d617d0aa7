"""A report finds the pictures of predictions without flags, or says which flag it needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medmvl.data.dataset import SampleDataset
from medmvl.data.roots import MediaRoots, roots_of_predictions, run_note
from medmvl.errors import DataError
from medmvl.evaluation import compare_predictions, evaluate_predictions
from medmvl.files import read_json, write_json, write_jsonl
from medmvl.inference.row_job import RowJob

FACTS = {"model": "m", "control": None}


@pytest.fixture
def data(tmp_path, media) -> Path:
    """Records whose volumes are below the media root that the conversion report names."""
    shutil.copytree(media, tmp_path / "scans")
    records = [
        {
            "id": f"q{number}",
            "conversations": [{"from": "human", "value": "<image3d>\nIs there a nodule?"}],
            "image3d": [f"{'ab'[number % 2]}.npy"],
            "answer": "Yes",
            "patient": f"p{number % 2}",
        }
        for number in range(4)
    ]
    write_jsonl(tmp_path / "data/questions/test.jsonl", records)
    write_json(tmp_path / "data/questions/report.json", {"dataset": "folder", "media_root": "../../scans"})
    return tmp_path / "data/questions/test.jsonl"


def predict(data: Path, out: Path, roots: MediaRoots | None = None, prediction: str = "Yes") -> None:
    """Write predictions as `medmvl predict` does, with a fixed answer."""
    dataset = SampleDataset(data, roots)
    job = RowJob(out, dataset, FACTS, None)
    job.run(lambda indices: [{**dataset.record(index), "prediction": prediction} for index in indices], 2)


def cases_of(predictions: Path, out: Path, roots: MediaRoots | None = None) -> list[dict]:
    evaluate_predictions(predictions, "own", out, roots=roots)
    return read_json(out / "details/own.json")["cases"]


def test_report_finds_the_pictures_of_its_predictions(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predict(data, tmp_path / "p.jsonl")
    cases = cases_of(Path("p.jsonl"), tmp_path / "out")
    assert cases
    assert all(case["picture"] for case in cases)


def test_pictures_are_found_after_the_folder_was_moved(data, tmp_path):
    predict(data, tmp_path / "p.jsonl")
    assert str(tmp_path) not in run_note(tmp_path / "p.jsonl").read_text()
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    assert all(case["picture"] for case in cases_of(moved / "p.jsonl", moved / "out"))


def test_side_by_side_finds_the_pictures(data, tmp_path):
    predict(data, tmp_path / "a.jsonl")
    predict(data, tmp_path / "b.jsonl", prediction="No")
    compare_predictions(tmp_path / "a.jsonl", tmp_path / "b.jsonl", "own", tmp_path / "out")
    page = (tmp_path / "out/side-by-side.html").read_text()
    assert "data:image/jpeg" in page
    assert "no picture" not in page


def test_given_root_wins_over_the_noted_one(data, tmp_path):
    predict(data, tmp_path / "p.jsonl")
    found = roots_of_predictions(tmp_path / "p.jsonl", MediaRoots(volume=tmp_path))
    assert (found.volume, found.image) == (tmp_path, (tmp_path / "scans"))


def test_without_a_note_the_message_names_flag_and_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predict(data, tmp_path / "p.jsonl")
    run_note(tmp_path / "p.jsonl").unlink()
    for roots in (None, MediaRoots(volume=tmp_path)):
        for case in cases_of(tmp_path / "p.jsonl", tmp_path / "out", roots):
            assert case["picture"] is None
            assert "Give --volume-root FOLDER" in case["note"]
            assert "report.json" in case["note"]


@pytest.mark.parametrize("note", ["[]", "{", '{"media_roots": 1}', '{"media_roots": {"volume": "gone", "image": 3}}'])
def test_damaged_note_does_not_stop_the_scoring(data, tmp_path, note):
    predict(data, tmp_path / "p.jsonl")
    run_note(tmp_path / "p.jsonl").write_text(note)
    assert roots_of_predictions(tmp_path / "p.jsonl", MediaRoots()) == MediaRoots()
    assert cases_of(tmp_path / "p.jsonl", tmp_path / "out")


def test_note_of_roots_does_not_refuse_a_rerun(data, tmp_path):
    out = tmp_path / "p.jsonl"
    predict(data, out)
    note = run_note(out)
    write_json(note, FACTS)  # as an older version wrote it
    predict(data, out)
    assert read_json(note)["media_roots"]["volume"] == "scans"
    shutil.copytree(tmp_path / "scans", tmp_path / "elsewhere")
    predict(data, out, MediaRoots(tmp_path / "elsewhere", tmp_path / "elsewhere"))
    assert read_json(note)["media_roots"]["volume"] == "elsewhere"
    with pytest.raises(DataError, match="another control"):
        RowJob(out, SampleDataset(data), {**FACTS, "control": "blank"}, None)


def test_urls_are_not_noted(data, tmp_path):
    url = "s3://bucket/scans"
    RowJob(tmp_path / "p.jsonl", SampleDataset(data, MediaRoots(tmp_path, url)), FACTS, None).write([])
    assert read_json(run_note(tmp_path / "p.jsonl"))["media_roots"] == {"image": "."}
