"""Files of records: whole, resumable, and honest about whose rows they hold."""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from medmvl.data.dataset import SampleDataset
from medmvl.data.roots import MediaRoots
from medmvl.errors import DataError
from medmvl.files import write_json
from medmvl.inference import GenerationOptions, Predictor, predict_file, score_file
from medmvl.inference.answering import AnswerSettings, shuffled_visual_inputs
from medmvl.inference.ray_job import predict_file_with_ray
from medmvl.inference.shares import Share
from processes import in_two_processes

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
    assert predict_file(predictor, data, out, roots=MediaRoots(image=media), options=SHORT, save_token_ids=True) == 6
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
    predict_file(predictor, data, whole, roots=MediaRoots(image=media), options=SHORT, batch_size=2)

    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(predictor, data, cut, roots=MediaRoots(image=media), options=SHORT, batch_size=2, on_row=stop)
    with cut.open("a") as handle:
        handle.write('{"id": "q4", "predic')  # what a kill in the middle of a line leaves behind
    assert predict_file(predictor, data, cut, roots=MediaRoots(image=media), options=SHORT, batch_size=2) == 2
    assert rows(cut) == rows(whole)
    assert predict_file(predictor, data, cut, roots=MediaRoots(image=media), options=SHORT) == 0


def test_an_out_file_of_other_settings_is_not_continued(predictor, data, media, tmp_path):
    out = tmp_path / "out.jsonl"
    predict_file(predictor, data, out, roots=MediaRoots(image=media), options=SHORT)
    with pytest.raises(DataError, match="another options"):
        predict_file(predictor, data, out, roots=MediaRoots(image=media), options=GenerationOptions(max_new_tokens=5))


def test_a_foreign_out_file_is_not_touched(predictor, data, media, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("my notes\n")
    with pytest.raises(DataError, match="not written by this command"):
        predict_file(predictor, data, out, roots=MediaRoots(image=media), options=SHORT)
    assert out.read_text() == "my notes\n"


def test_a_bad_record_is_named_and_finished_rows_stay(predictor, data, media, tmp_path):
    records = json.loads(data.read_text())
    records[4]["image"] = ["missing.png"]
    write_json(data, records)
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"q4.*missing\.png"):
        predict_file(predictor, data, out, roots=MediaRoots(image=media), options=SHORT, batch_size=2)
    assert [row["id"] for row in rows(out)] == ["q0", "q3", "q2", "q5"]  # by image; the one without its image is last


def test_a_doubled_id_is_refused(predictor, data, media, tmp_path):
    records = json.loads(data.read_text())
    records[1]["id"] = "q0"
    write_json(data, records)
    with pytest.raises(DataError, match="'q0' stands twice"):
        predict_file(predictor, data, tmp_path / "out.jsonl", roots=MediaRoots(image=media), options=SHORT)


def test_shuffled_media_are_another_patients(data, media):
    dataset = SampleDataset(data, MediaRoots(media))
    for index, donor in enumerate(shuffled_visual_inputs(dataset)):
        assert dataset.sample(index).extra["patient"] != dataset.sample(donor).extra["patient"]


def test_shuffling_needs_a_second_patient(data, media):
    records = [record | {"patient": "p0"} for record in json.loads(data.read_text())]
    write_json(data, records)
    with pytest.raises(DataError, match="no other patient"):
        shuffled_visual_inputs(SampleDataset(data, MediaRoots(media)))


def test_text_only_asks_the_words_alone(predictor, data, media, tmp_path, monkeypatch):
    asked = []
    encode = predictor.encode
    monkeypatch.setattr(predictor, "encode", lambda sample: asked.append(sample) or encode(sample))
    predict_file(
        predictor, data, tmp_path / "t.jsonl", roots=MediaRoots(image=media), options=SHORT, control="text_only"
    )
    assert asked
    for sample in asked:
        assert sample.images == sample.volumes == ()
        assert "<image" not in "".join(message.text for message in sample.messages)
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert any("image" in row for row in rows)  # the record is written as it came


def test_controls_are_written_with_the_true_record(predictor, data, media, tmp_path):
    for control in ("blank", "shuffled"):
        out = tmp_path / f"{control}.jsonl"
        predict_file(predictor, data, out, roots=MediaRoots(image=media), options=SHORT, control=control)
        assert [row["image"] for row in rows(out)] == [[f"{'abc'[n % 3]}.png"] for n in range(6)]


def test_scores_are_losses_per_supervised_token(predictor, data, media, tmp_path):
    out = tmp_path / "scores.jsonl"
    score_file(predictor, data, out, roots=MediaRoots(image=media), batch_size=4)
    assert [row["id"] for row in rows(out)] == [f"q{n}" for n in range(6)]
    assert all(row["loss"] > 0 and row["supervised_tokens"] >= 2 for row in rows(out))


def test_an_answer_beside_the_conversation_is_what_is_scored(predictor, data, media, tmp_path):
    score_file(predictor, data, tmp_path / "with.jsonl", roots=MediaRoots(image=media))
    records = json.loads(data.read_text())
    for record in records:
        record["answer"] = record["conversations"].pop()["value"]
    write_json(data, records)
    score_file(predictor, data, tmp_path / "beside.jsonl", roots=MediaRoots(image=media))
    for with_turn, beside in zip(rows(tmp_path / "with.jsonl"), rows(tmp_path / "beside.jsonl"), strict=True):
        assert with_turn == pytest.approx(beside)


@pytest.fixture
def shared(tmp_path, media) -> Path:
    """Twelve records in which two volumes and two images take turns, and two records about neither."""
    records = []
    for number in range(12):
        kind, placeholder = (("image", "<image>"), ("image3d", "<image3d>"))[number % 2]
        name = f"{'ab'[number // 2 % 2]}.{'png' if kind == 'image' else 'npy'}"
        text = f"{placeholder}\nQuestion {number}: {'why ' * (number % 5)}is there a nodule?"
        record = {
            "id": f"q{number}",
            "conversations": [{"from": "human", "value": text}],
            kind: [name],
            "answer": "Yes.",
        }
        records.append(record)
    records += [{"id": f"t{n}", "conversations": [{"from": "human", "value": "Hello?"}], "answer": "a"} for n in "ab"]
    path = tmp_path / "shared.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_each_file_is_read_once_and_rows_are_in_file_order(model_folder, shared, media, tmp_path, monkeypatch):
    reads = []
    for module, name in (("medmvl.inference.predictor", "read_image"), ("medmvl.processing.volume3d", "read_volume")):
        original = getattr(sys.modules[module], name)
        spy = lambda path, _read=original, **how: reads.append(Path(path).name) or _read(path, **how)  # noqa: E731
        monkeypatch.setattr(f"{module}.{name}", spy)
    predictor = Predictor.from_pretrained(model_folder)
    predictor._prepare_volume = lru_cache(1)(predictor._read_and_prepare)
    predictor._open_image = lru_cache(1)(predictor._open_image.__wrapped__)
    out = tmp_path / "out.jsonl"
    predict_file(predictor, shared, out, roots=MediaRoots(media, media), options=SHORT, batch_size=2)
    assert sorted(reads) == ["a.npy", "a.png", "b.npy", "b.png"]
    assert [row["id"] for row in rows(out)] == [record["id"] for record in rows(shared)]
    alone = Predictor.from_pretrained(model_folder)
    one_by_one = tmp_path / "one.jsonl"
    predict_file(alone, shared, one_by_one, roots=MediaRoots(media, media), options=SHORT, batch_size=1)
    assert rows(one_by_one) == rows(out)


def test_a_run_killed_before_it_sorted_is_sorted_by_the_next(predictor, shared, media, tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    predict_file(predictor, shared, whole, roots=MediaRoots(media, media), options=SHORT)

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(predictor, shared, cut, roots=MediaRoots(media, media), options=SHORT, on_row=stop)
    assert [row["id"] for row in rows(cut)] != [row["id"] for row in rows(whole)]
    assert predict_file(predictor, shared, cut, roots=MediaRoots(media, media), options=SHORT) == 0
    assert cut.read_bytes() == whole.read_bytes()


def _predict_a_share(folder: Path, shared: Path, media: Path, out: Path) -> None:
    predictor = Predictor.from_pretrained(folder)
    predict_file(predictor, shared, out, roots=MediaRoots(media, media), options=SHORT, batch_size=2)


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(model_folder, predictor, shared, media, tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    predict_file(predictor, shared, whole, roots=MediaRoots(media, media), options=SHORT)
    lines = whole.read_text().splitlines(keepends=True)
    # What a killed run of three processes has left: rows in the file and in a part, the last of them cut.
    write_json(tmp_path / "parts.jsonl.run.json", json.loads((tmp_path / "whole.jsonl.run.json").read_text()))
    parts.write_text(lines[3])
    (tmp_path / "parts.jsonl.part2").write_text(lines[5] + lines[3] + lines[7][:20])
    in_two_processes(_predict_a_share, model_folder, shared, media, parts)
    assert parts.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("parts.jsonl.part*"))


def test_shares_cut_where_a_volume_ends():
    work, group = list(range(10)), {n: n // 4 for n in range(10)}
    found = [list(Share(rank, 3).of(work, group.__getitem__)) for rank in range(3)]
    assert [index for part in found for index in part] == work
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.slow
def test_ray_writes_the_same_rows(model_folder, predictor, shared, media, tmp_path):
    pytest.importorskip("ray.data")
    whole, by_ray = tmp_path / "whole.jsonl", tmp_path / "ray.jsonl"
    roots = MediaRoots(media, media)
    predict_file(predictor, shared, whole, roots=roots, options=SHORT)
    settings = AnswerSettings(SHORT)
    assert predict_file_with_ray(model_folder, shared, by_ray, roots=roots, settings=settings, batch_size=2) == 14
    assert by_ray.read_bytes() == whole.read_bytes()
    assert predict_file_with_ray(model_folder, shared, by_ray, roots=roots, settings=settings) == 0


def test_choices_are_weighed_where_options_are_known(predictor, media, tmp_path):
    def record(name: str, text: str, **facts) -> dict:
        return {
            "id": name,
            "conversations": [{"from": "human", "value": f"<image>\n{text}"}],
            "image": ["a.png"],
            **facts,
        }

    data = tmp_path / "choices.jsonl"
    records = [
        record("letters", "Side? (a) left (b) right", options={"A": "left", "B": "right"}, answer="(a) left"),
        record("list", "Side?", options=["left", "right", "both"], answer="both"),
        record("closed", "Nodule?", answer="no"),
        record("open", "What?", answer="a nodule"),
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in records))
    out = tmp_path / "out.jsonl"
    predict_file(predictor, data, out, roots=MediaRoots(media), options=SHORT, choices=True)
    found = rows(out)
    options = [["(a) left", "(b) right"], ["left", "right", "both"], ["yes", "no"]]
    for row, given in zip(found, options, strict=False):
        question_text = row["conversations"][0]["value"].removeprefix("<image>\n")
        expected = predictor.choice_probabilities(question_text, given, images=[str(media / "a.png")])
        assert row["probabilities"] == pytest.approx(expected, rel=1e-3)
        assert row["prediction"] == max(expected, key=expected.get)
        assert row["confidence"] == max(row["probabilities"].values())
    assert "probabilities" not in found[3]
    with pytest.raises(DataError, match="choices"):
        predict_file(predictor, data, out, roots=MediaRoots(media), options=SHORT)


@pytest.mark.parametrize(
    "options", [SHORT, GenerationOptions(max_new_tokens=4, temperature=1.0)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize(("before", "after"), [(2, 3), (4, 1)])
def test_resume_with_another_batch_size_gives_equal_rows(predictor, media, tmp_path, options, before, after):
    def record(number):
        question = "<image>\nIs there a nodule?" + " Look at the left lung." * (number % 3)
        turns = [{"from": "human", "value": question}]
        return {"id": f"q{number}", "conversations": turns, "image": [f"{'abc'[number % 3]}.png"]}

    write_json(tmp_path / "data.json", [record(number) for number in range(9)])
    given = (predictor, tmp_path / "data.json")
    settings = {"roots": MediaRoots(image=media), "options": options, "save_token_ids": True}

    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    predict_file(*given, tmp_path / "whole.jsonl", **settings, batch_size=before)
    with pytest.raises(KeyboardInterrupt):
        predict_file(*given, tmp_path / "cut.jsonl", **settings, batch_size=before, on_row=stop)
    assert predict_file(*given, tmp_path / "cut.jsonl", **settings, batch_size=after) == 5
    whole, cut = rows(tmp_path / "whole.jsonl"), rows(tmp_path / "cut.jsonl")
    for expected, found in zip(whole, cut, strict=True):
        # Padding changes the order of sums: the last of the four written digits may differ.
        assert found.pop("confidence") == pytest.approx(expected.pop("confidence"), rel=1.1e-3)
        assert found == expected
