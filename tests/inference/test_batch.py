"""Files of records: whole, resumable, and honest about whose rows they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medmvl.data.dataset import SampleDataset
from medmvl.errors import DataError
from medmvl.files import write_json
from medmvl.inference import GenerationOptions, Predictor, predict_file, score_file
from medmvl.inference.batch import shuffled_media

SHORT = GenerationOptions(max_new_tokens=4)


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:
    return Predictor.from_pretrained(model_folder)


@pytest.fixture
def data(tmp_path, media) -> Path:
    """Six records of three patients, written where their images are found."""
    records = [
        {
            "id": f"q{number}",
            "conversations": [
                {"from": "human", "value": "<image>\nIs there a nodule?"},
                {"from": "gpt", "value": "Yes."},
            ],
            "image": [f"{'abc'[number % 3]}.png"],
            "patient": f"p{number % 3}",
        }
        for number in range(6)
    ]
    path = tmp_path / "data.json"
    write_json(path, records)
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predictions_hold_the_record_and_the_answer(predictor, data, media, tmp_path):
    out = tmp_path / "out.jsonl"
    assert predict_file(predictor, data, out, image_root=media, options=SHORT, save_token_ids=True) == 6
    row = rows(out)[0]
    assert row["id"] == "q0"
    assert row["answer"] == "Yes."
    assert row["patient"] == "p0"
    assert row["image"] == ["a.png"]
    assert len(row["token_ids"]) <= 4
    assert isinstance(row["prediction"], str)
    assert 0 < row["confidence"] <= 1


def test_a_killed_run_goes_on_and_equals_an_uninterrupted_one(predictor, data, media, tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    predict_file(predictor, data, whole, image_root=media, options=SHORT)

    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(predictor, data, cut, image_root=media, options=SHORT, batch_size=2, on_row=stop)
    with cut.open("a") as handle:
        handle.write('{"id": "q4", "predic')  # what a kill in the middle of a line leaves behind
    assert predict_file(predictor, data, cut, image_root=media, options=SHORT, batch_size=2) == 2
    assert rows(cut) == rows(whole)
    assert predict_file(predictor, data, cut, image_root=media, options=SHORT) == 0


def test_an_out_file_of_other_settings_is_not_continued(predictor, data, media, tmp_path):
    out = tmp_path / "out.jsonl"
    predict_file(predictor, data, out, image_root=media, options=SHORT)
    with pytest.raises(DataError, match="another options"):
        predict_file(predictor, data, out, image_root=media, options=GenerationOptions(max_new_tokens=5))


def test_a_foreign_out_file_is_not_touched(predictor, data, media, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("my notes\n")
    with pytest.raises(DataError, match="not written by this command"):
        predict_file(predictor, data, out, image_root=media, options=SHORT)
    assert out.read_text() == "my notes\n"


def test_a_bad_record_is_named_and_finished_rows_stay(predictor, data, media, tmp_path):
    records = json.loads(data.read_text())
    records[4]["image"] = ["missing.png"]
    write_json(data, records)
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"q4.*missing\.png"):
        predict_file(predictor, data, out, image_root=media, options=SHORT, batch_size=2)
    assert [row["id"] for row in rows(out)] == ["q0", "q1", "q2", "q3"]


def test_a_doubled_id_is_refused(predictor, data, media, tmp_path):
    records = json.loads(data.read_text())
    records[1]["id"] = "q0"
    write_json(data, records)
    with pytest.raises(DataError, match="'q0' stands twice"):
        predict_file(predictor, data, tmp_path / "out.jsonl", image_root=media, options=SHORT)


def test_shuffled_media_are_another_patients(data, media):
    dataset = SampleDataset(data, media)
    for index, donor in enumerate(shuffled_media(dataset)):
        assert dataset.sample(index).extra["patient"] != dataset.sample(donor).extra["patient"]


def test_shuffling_needs_a_second_patient(data, media):
    records = [record | {"patient": "p0"} for record in json.loads(data.read_text())]
    write_json(data, records)
    with pytest.raises(DataError, match="no other patient"):
        shuffled_media(SampleDataset(data, media))


def test_text_only_asks_the_words_alone(predictor, data, media, tmp_path, monkeypatch):
    asked = []
    encode = predictor.encode
    monkeypatch.setattr(predictor, "encode", lambda sample: asked.append(sample) or encode(sample))
    predict_file(predictor, data, tmp_path / "t.jsonl", image_root=media, options=SHORT, control="text_only")
    assert asked
    for sample in asked:
        assert sample.images == sample.volumes == ()
        assert "<image" not in "".join(message.text for message in sample.messages)
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert any("image" in row for row in rows)  # the record is written as it came


def test_controls_are_written_with_the_true_record(predictor, data, media, tmp_path):
    for control in ("blank", "shuffled"):
        out = tmp_path / f"{control}.jsonl"
        predict_file(predictor, data, out, image_root=media, options=SHORT, control=control)
        assert [row["image"] for row in rows(out)] == [[f"{'abc'[n % 3]}.png"] for n in range(6)]


def test_scores_are_losses_per_supervised_token(predictor, data, media, tmp_path):
    out = tmp_path / "scores.jsonl"
    score_file(predictor, data, out, image_root=media, batch_size=4)
    assert [row["id"] for row in rows(out)] == [f"q{n}" for n in range(6)]
    assert all(row["loss"] > 0 and row["supervised_tokens"] >= 2 for row in rows(out))


def test_an_answer_beside_the_conversation_is_what_is_scored(predictor, data, media, tmp_path):
    score_file(predictor, data, tmp_path / "with.jsonl", image_root=media)
    records = json.loads(data.read_text())
    for record in records:
        record["answer"] = record["conversations"].pop()["value"]
    write_json(data, records)
    score_file(predictor, data, tmp_path / "beside.jsonl", image_root=media)
    for with_turn, beside in zip(rows(tmp_path / "with.jsonl"), rows(tmp_path / "beside.jsonl"), strict=True):
        assert with_turn == pytest.approx(beside)
