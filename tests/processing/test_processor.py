"""The processor through its public door: encode, call, save and load."""

from __future__ import annotations

import logging

import pytest
import torch

from medmvl.data.sample import Message, Sample
from medmvl.errors import DataError
from medmvl.processing import MedMVLProcessor
from tiny import VOLUME_SIZE, make_model


@pytest.fixture(scope="module")
def processor() -> MedMVLProcessor:
    return make_model()[1]


def sample(text: str, answer: str | None = "Yes.", **media) -> Sample:
    turns = (Message("user", text), *([Message("assistant", answer)] if answer else []))
    return Sample("s1", turns, **media)


def test_images_and_volumes_of_a_row_become_tensors_and_placeholders(processor, media):
    row = sample(
        "<image><image><image3d>What changed?",
        images=(str(media / "a.png"), str(media / "b.png")),
        volumes=(str(media / "a.npy"),),
    )
    encoded = processor.encode(row)
    assert encoded["pixel_values"].shape == (2, 3, 32, 32)
    assert encoded["volume_values"].shape == (1, 1, *VOLUME_SIZE)
    ids = encoded["input_ids"].tolist()
    assert ids.count(processor.placeholders["<image>"].token_id) == 2 * 16
    assert ids.count(processor.placeholders["<image3d>"].token_id) == 16
    assert encoded["labels"].shape == encoded["input_ids"].shape


def test_asking_drops_the_answer(processor):
    encoded = processor.encode(sample("Is there a nodule?"), train=False)
    assert "labels" not in encoded
    assert processor.tokenizer.decode(encoded["input_ids"]).endswith("assistant\n")


@pytest.mark.parametrize("text", ["What is it?", "<image><image>What is it?"])
def test_a_placeholder_count_that_does_not_match_names_the_sample(processor, media, text):
    with pytest.raises(DataError, match=r"Sample s1: [02] <image> placeholders for 1 image"):
        processor.encode(sample(text, images=(str(media / "a.png"),)))


def test_a_sample_without_an_answer_cannot_train(processor):
    with pytest.raises(DataError, match="s1.*no answer"):
        processor.encode(sample("Is there a nodule?", answer=None))


def test_too_long_a_conversation_forgets_history_but_no_answer(processor, caplog):
    rounds = [Message(r, t) for _ in range(40) for r, t in (("user", "Is there?"), ("assistant", "No."))]
    with caplog.at_level(logging.WARNING):
        encoded = processor.encode(Sample("long", (*rounds, Message("user", "Last?"), Message("assistant", "Yes."))))
    assert len(encoded["input_ids"]) <= processor.max_length
    assert processor.tokenizer.decode(encoded["labels"][encoded["labels"] >= 0]).endswith("Yes.<|im_end|>")
    assert "long" in caplog.text


def test_too_long_an_answer_is_refused_with_both_numbers(processor):
    with pytest.raises(DataError, match=r"s1: \d+ tokens, the model takes 512"):
        processor.encode(sample("Report?", answer="a nodule " * 400))


def test_saved_and_loaded_it_encodes_the_same(processor, media, tmp_path):
    processor.save_pretrained(tmp_path)
    again = MedMVLProcessor.from_pretrained(tmp_path)
    row = sample("<image3d>Nodule?", volumes=(str(media / "a.npy"),))
    before, after = processor.encode(row), again.encode(row)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert again.volume_processor.geometry.hash == processor.volume_processor.geometry.hash


def test_a_call_tokenizes_prompts_as_they_stand(processor, media):
    batch = processor(text=["<image>one", "two, which is longer"], images=[str(media / "a.png")])
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    assert batch["attention_mask"][1, 0] == 0  # the shorter row is padded on the left, ready to generate


def test_batches_pad_on_the_side_asked_for(processor):
    rows = [processor.encode(sample("Is there a nodule on the left side?")), processor.encode(sample("Is there?"))]
    right, left = processor.collate(rows), processor.collate(rows, padding_side="left")
    assert right["attention_mask"][1, -1] == 0
    assert left["attention_mask"][1, 0] == 0
    assert (right["labels"] >= 0).sum() == (left["labels"] >= 0).sum()
    assert (right["labels"][right["attention_mask"] == 0] == -100).all()
