"""Many questions about the same images and volumes: encoded once, prefilled once, answered as one by one."""

from __future__ import annotations

import pytest
import torch

from medmvl import Predictor
from medmvl.data.sample import Message, Sample
from medmvl.errors import DataError
from medmvl.inference import GenerationOptions
from medmvl.inference.shared_prefix import prefill

QUESTIONS = ["Is there a nodule?", "Why?", "Which side is it on, left or right?", "Is there a nodule?"]


@pytest.fixture
def predictor(model_folder) -> Predictor:
    return Predictor.from_pretrained(model_folder)


@pytest.mark.parametrize("kind", ["images", "volumes", "both", "none"])
def test_answers_equal_those_of_one_by_one(predictor, media, kind):
    given = {
        "images": {"images": [str(media / "a.png"), str(media / "b.png")]},
        "volumes": {"volumes": [str(media / "a.npy")]},
        "both": {"images": [str(media / "a.png")], "volumes": [str(media / "b.npy")]},
        "none": {},
    }[kind]
    alone = [predictor.answer(text, **given, max_new_tokens=8) for text in QUESTIONS]
    assert predictor.answer_many(QUESTIONS, **given, max_new_tokens=8) == alone
    assert predictor.answer_many(QUESTIONS, **given, max_new_tokens=8, batch_size=3) == alone


def test_a_volume_is_read_and_encoded_once(predictor, media, monkeypatch):
    reads = []
    original = predictor.processor.volume_processor.prepare
    monkeypatch.setattr(
        predictor.processor.volume_processor, "prepare", lambda path: reads.append(path) or original(path)
    )
    predictor.answer_many(QUESTIONS, volumes=[str(media / "a.npy")], max_new_tokens=2, batch_size=2)
    predictor.answer("And now?", volumes=[str(media / "a.npy")], max_new_tokens=2)
    assert (len(reads), predictor.visual_cache.encoded) == (1, 1)


def test_features_are_kept_up_to_a_limit(predictor, media):
    predictor.visual_cache._limit = 1  # bytes: the newest is kept all the same
    for _ in range(2):
        for name in "ab":
            predictor.answer("What?", images=[str(media / f"{name}.png")], max_new_tokens=1)
    assert predictor.visual_cache.encoded == 4


def test_the_shared_prefix_is_used_and_holds_the_image(predictor, media):
    rows = [
        Sample(str(i), (Message("user", f"<image>\n{text}"),), (str(media / "a.png"),)) for i, text in enumerate("ab")
    ]
    encoded = [predictor.encode(row) for row in rows]
    found = prefill(predictor.model, encoded)
    assert found is not None
    assert int((found.ids == predictor.model.config.image_token_id).sum()) == predictor.processor.image_tokens
    other = predictor.encode(Sample("c", rows[0].messages, (str(media / "b.png"),)))
    assert prefill(predictor.model, [encoded[0], other]) is None
    predictor.model.generation_config.repetition_penalty = 1.2
    assert prefill(predictor.model, encoded) is None


def test_sampled_answers_do_not_depend_on_sharing(predictor, media):
    row = Sample("a", (Message("user", "<image>\nIs there a nodule?"),), (str(media / "a.png"),))
    encoded = [predictor.encode(row) for _ in range(3)]
    options = GenerationOptions(max_new_tokens=6, temperature=1.0)
    keys = ["a", "b", "c"]
    together = [answer.token_ids for answer in predictor.generate(encoded, options, keys)]
    alone = [predictor.generate([item], options, [key])[0].token_ids for item, key in zip(encoded, keys, strict=True)]
    assert together == alone


def test_choices_are_weighed_by_their_likelihood(predictor, media):
    given = {"images": [str(media / "a.png")]}
    options = ["Yes.", "No.", "A nodule in the left lung."]
    found = predictor.choice_probabilities("Is there a nodule?", options, **given)
    assert sum(found.values()) == pytest.approx(1)
    assert predictor.choose("Is there a nodule?", options, **given) == max(found, key=found.get)
    logs = []
    for option in options:
        turns = (Message("user", "<image>\nIs there a nodule?"), Message("assistant", option))
        batch = predictor.processor.collate([predictor.processor.encode(Sample("a", turns, (str(media / "a.png"),)))])
        with torch.no_grad():
            logs.append(-float(predictor.model(**batch).loss) * int((batch["labels"] >= 0).sum()))
    assert list(found.values()) == pytest.approx(torch.tensor(logs).softmax(0).tolist(), rel=1e-4)


def test_a_choice_needs_two_options(predictor):
    with pytest.raises(DataError, match="at least two"):
        predictor.choose("Is it?", ["Yes", "Yes"])
