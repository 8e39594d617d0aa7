"""Conversations: each turn is answered as the whole conversation would be, and earlier turns are not run again."""

from __future__ import annotations

import pytest

from medmvl import Predictor
from medmvl.data.sample import Message, Sample
from medmvl.inference import GenerationOptions


@pytest.fixture
def predictor(model_folder) -> Predictor:
    return Predictor.from_pretrained(model_folder)


def whole(predictor, messages, images=(), volumes=(), **options) -> str:
    """Return the answer to a conversation that a fresh predictor has never seen."""
    fresh = Predictor(predictor.model, predictor.processor)
    encoded = fresh.encode(Sample("x", tuple(messages)), list(images), list(volumes))
    return fresh.generate([encoded], GenerationOptions(**options))[0].text


def test_turns_equal_the_whole_conversation_and_reuse_it(predictor, media):
    image, volume = str(media / "a.png"), str(media / "a.npy")
    chat = predictor.chat(system="Be brief.")
    settings = {"max_new_tokens": 12, "temperature": 1.0, "seed": 4}
    first = chat.ask("What is seen?", images=[image], **settings)
    turns = [Message("system", "Be brief."), Message("user", "<image>\nWhat is seen?")]
    assert first == whole(predictor, turns, [image], **settings)
    assert chat.messages == [*turns, Message("assistant", first)]
    prompt = len(chat.last.encoded["input_ids"])
    pieces = list(chat.stream("And here?", volumes=[volume], **settings))
    assert chat.last.reused >= prompt
    turns = [*turns, Message("assistant", first), Message("user", "<image3d>\nAnd here?")]
    assert "".join(pieces) == whole(predictor, turns, [image], [volume], **settings)
    assert predictor.visual_cache.encoded == 2
    third = chat.ask("Sure?", **settings)
    assert third == whole(
        predictor,
        [*turns, Message("assistant", "".join(pieces)), Message("user", "Sure?")],
        [image],
        [volume],
        **settings,
    )
    assert predictor.visual_cache.encoded == 2


def test_a_cancelled_turn_leaves_the_conversation_as_it_was(predictor, media):
    chat = predictor.chat()
    settings = {"max_new_tokens": 100, "temperature": 1.5, "seed": 1}
    pieces = chat.stream("What?", images=[str(media / "a.png")], **settings)
    next(pieces)
    pieces.close()
    assert chat.messages == []
    answer = chat.ask("Why?", max_new_tokens=6)
    assert answer == whole(predictor, [Message("user", "Why?")], max_new_tokens=6)


def test_stop_strings_end_a_turn(predictor):
    settings = {"max_new_tokens": 30, "temperature": 1.0, "seed": 2}
    text = predictor.chat().ask("What?", **settings)
    word = text.split()[1]
    assert predictor.chat().ask("What?", stops=(word,), **settings) == text.split(word)[0].strip()
