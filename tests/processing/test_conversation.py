"""One prompt everywhere: chat messages of transformers, records, and answers that begin with white space."""

from __future__ import annotations

import json

import pytest
from PIL import Image as PILImage
from tests.tiny import IMAGE_SIZE, make_model, make_tokenizer

from medmvl.data.record import parse_record
from medmvl.data.sample import Message, Sample
from medmvl.errors import DataError
from medmvl.models.labels import IGNORE_INDEX
from medmvl.processing import MedMVLProcessor
from medmvl.processing.templates import load_template, template_names

PICTURE = PILImage.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "gray")
IMAGE = {"type": "image", "image": PICTURE}
CONVERSATIONS = {
    "text": [{"role": "user", "content": "Is there a nodule?"}],
    "part": [{"role": "user", "content": [{"type": "text", "text": "Is there a nodule?"}]}],
    "image first": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "Is it?"}]}],
    "text first": [{"role": "user", "content": [{"type": "text", "text": "Is it?"}, IMAGE]}],
    "several": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE, IMAGE, {"type": "text", "text": "b"}]}
    ],
    "turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "Is it?"}]},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ],
}


@pytest.fixture(scope="module")
def processor() -> MedMVLProcessor:
    return make_model()[1]


def record_of(turns: list[dict]) -> Sample:
    """Return the same conversation read from a record."""
    text = json.dumps(turns, default=lambda _: "a.png")
    return parse_record({"id": "a", "messages": json.loads(text)}, "here")


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_chat_messages_give_the_prompt_of_the_same_record(name, processor):
    turns = CONVERSATIONS[name]
    sample = record_of(turns)
    images = [PICTURE] * len(sample.images)
    wanted = processor.encode(sample, train=False, images=images)
    found = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert found["input_ids"][0].tolist() == wanted["input_ids"].tolist()
    if images:
        assert found["pixel_values"].equal(wanted["pixel_values"])
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    two_steps = processor(text=prompt, images=images or None)
    assert two_steps["input_ids"][0].tolist() == wanted["input_ids"].tolist()


def test_a_started_answer_is_continued(processor):
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "No, because"}]
    prompt = processor.apply_chat_template(turns, continue_final_message=True)
    assert prompt.endswith("<|im_start|>assistant\nNo, because")


def test_a_picture_on_a_network_is_refused(processor):
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(DataError, match="nothing is fetched"):
        processor.apply_chat_template([{"role": "user", "content": [part]}])


@pytest.mark.parametrize("answer", ["Yes", "\nYes", "\n\nYes", "  Yes", "\tYes"])
@pytest.mark.parametrize("template", sorted(set(template_names()) - {"pretrain", "pretrain_image3d"}))
def test_a_training_row_begins_with_the_prompt_as_asked(template, answer):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["\n\n", "\n\n\n", ": "])  # tokens that reach over the end of a prompt
    processor = MedMVLProcessor(tokenizer, chat_template=load_template(template))
    sample = Sample("a", (Message("user", "Is it?"), Message("assistant", answer)))
    ids, labels = processor.encode_text(sample)
    asked, _ = processor.encode_text(sample, train=False)
    assert ids[: len(asked)] == asked
    assert all(label == IGNORE_INDEX for label in labels[: len(asked)])
    assert labels[len(asked)] == ids[len(asked)]


@pytest.mark.parametrize(("template", "warned"), [("qwen2", True), ("plain", False), ("gemma-chat", False)])
def test_a_dropped_system_turn_is_logged_once(template, warned, caplog):
    processor = MedMVLProcessor(make_tokenizer(), chat_template=load_template(template))
    for name in "ab":
        sample = Sample(name, (Message("system", "Be brief."), Message("user", "Is it?")))
        processor.encode_text(sample, train=False)
    assert ["system turn" in record.message for record in caplog.records] == [True] * warned
