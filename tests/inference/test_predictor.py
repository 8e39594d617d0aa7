"""The Predictor: one question, a stream, a batch."""

from __future__ import annotations

import pytest
import torch

from medmvl import Predictor
from medmvl.data.sample import Message, Sample
from medmvl.errors import CheckpointError, DataError, ModelError, RecipeError
from medmvl.inference import GenerationOptions


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:
    return Predictor.from_pretrained(model_folder)


def test_an_answer_is_text_and_the_same_each_time(predictor, media):
    first = predictor.answer("What is seen?", images=[str(media / "a.png")], max_new_tokens=6)
    assert isinstance(first, str)
    assert first == predictor.answer("What is seen?", images=[str(media / "a.png")], max_new_tokens=6)


def test_a_stream_gives_the_answer_in_pieces(predictor, media):
    whole = predictor.answer("What is seen?", volumes=[str(media / "a.npy")], max_new_tokens=8)
    pieces = list(predictor.stream("What is seen?", volumes=[str(media / "a.npy")], max_new_tokens=8))
    assert "".join(pieces).strip() == whole


def test_a_failure_inside_a_stream_reaches_the_caller(predictor, monkeypatch):
    def fail(*_, **__):
        raise ModelError("out of order")

    monkeypatch.setattr(predictor.model, "forward", fail)
    with pytest.raises(ModelError, match="out of order"):
        list(predictor.stream("What?"))


def test_closing_a_stream_stops_the_model(predictor, monkeypatch):
    steps = []
    forward = predictor.model.forward
    monkeypatch.setattr(predictor.model, "forward", lambda *a, **k: steps.append(1) or forward(*a, **k))
    pieces = predictor.stream("What?", max_new_tokens=200, temperature=1.5, seed=1)
    next(pieces)
    pieces.close()
    assert len(steps) < 20


@pytest.mark.parametrize("beams", [1, 3])
def test_a_stream_of_beams_is_one_piece(predictor, media, beams):
    given = {"images": [str(media / "a.png")], "max_new_tokens": 6, "num_beams": beams}
    assert "".join(predictor.stream("What?", **given)) == predictor.answer("What?", **given)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_mixed_batch_answers_as_one_by_one(predictor, media, beams):
    a, b, c = (str(media / f"{name}.png") for name in "abc")
    ct = str(media / "b.npy")
    rows = [
        Sample("text", (Message("user", "Is there a nodule?"),)),
        Sample("two images", (Message("user", "<image>then<image>changed?"),), images=(a, b)),
        Sample("both", (Message("user", "<image3d><image>same?"),), images=(c,), volumes=(ct,)),
    ]
    options = GenerationOptions(max_new_tokens=6, num_beams=beams)
    encoded = [predictor.encode(row) for row in rows]
    alone = [predictor.generate([item], options)[0].token_ids for item in encoded]
    together = [answer.token_ids for answer in predictor.generate(encoded, options)]
    assert together == alone


def test_losses_are_per_record_and_do_not_depend_on_the_batch(predictor, media):
    turns = [(Message("user", "Is there?"), Message("assistant", text)) for text in ("Yes.", "No nodule is seen.")]
    encoded = [predictor.processor.encode(Sample(str(i), turn)) for i, turn in enumerate(turns)]
    together = predictor.losses(encoded)
    for item, (loss, count) in zip(encoded, together, strict=True):
        alone_loss, alone_count = predictor.losses([item])[0]
        assert count == alone_count == int((item["labels"] >= 0).sum())
        assert loss == pytest.approx(alone_loss, abs=1e-5)


def test_losses_equal_the_models_own_loss(predictor):
    row = Sample("one", (Message("user", "Is there?"), Message("assistant", "No nodule is seen.")))
    encoded = predictor.processor.encode(row)
    batch = predictor.processor.collate([encoded])
    assert predictor.losses([encoded])[0][0] == pytest.approx(float(predictor.model(**batch).loss), abs=1e-5)


def test_blank_media_make_the_answer_blind(predictor, media):
    rows = [Sample(name, (Message("user", "<image>?"),), images=(str(media / f"{name}.png"),)) for name in "ab"]
    a, b = (predictor.blank(predictor.encode(row))["pixel_values"] for row in rows)
    assert a.equal(b)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Predictor.from_pretrained(tmp_path)


def test_a_checkpoint_without_its_processor_is_refused(model_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(model_folder / name)
    with pytest.raises(CheckpointError, match="processor"):
        Predictor.from_pretrained(tmp_path)


def test_wrong_options_are_refused(predictor):
    with pytest.raises(RecipeError, match="at least"):
        predictor.answer("What?", max_new_tokens=0)


def test_media_without_room_in_the_text_are_refused(predictor, media):
    with pytest.raises(DataError, match="placeholder"):
        predictor.answer("<image>?", images=[str(media / "a.png"), str(media / "b.png")])


@pytest.mark.parametrize("beams", [1, 3])
def test_confidence_is_answer_probability_in_batches(predictor, media, beams):
    rows = [
        Sample("text", (Message("user", "Is there a nodule?"),)),
        Sample("both", (Message("user", "<image3d><image>same?"),), (str(media / "a.png"),), (str(media / "b.npy"),)),
    ]
    encoded = [predictor.encode(row) for row in rows]
    answers = predictor.generate(encoded, GenerationOptions(max_new_tokens=5, num_beams=beams))
    for item, answer in zip(encoded, answers, strict=True):
        # The same tokens read once more in one pass, without generation.
        batch = predictor.processor.collate([item], padding_side="left")
        start = batch["input_ids"].shape[1]
        written = torch.tensor([answer.token_ids])
        batch["input_ids"] = torch.cat([batch["input_ids"], written], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        with torch.inference_mode():
            logs = predictor.model(**batch).logits[0, start - 1 : -1].log_softmax(-1)
        expected = float(logs.gather(1, written.T).sum().exp())
        assert answer.confidence == pytest.approx(expected, rel=1e-4)


def test_a_temperature_changes_the_draw_but_not_what_confidence_means(predictor):
    encoded = [predictor.encode(Sample("text", (Message("user", "Is there a nodule?"),)))]
    cold = predictor.generate(encoded, GenerationOptions(max_new_tokens=3))[0]
    nearly = predictor.generate(encoded, GenerationOptions(max_new_tokens=3, temperature=1e-3))[0]
    assert nearly.token_ids == cold.token_ids
    assert nearly.confidence == pytest.approx(cold.confidence, rel=1e-4)
