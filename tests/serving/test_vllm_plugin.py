"""The parts of the vLLM plugin that need no vLLM: prompts, checks, uploads."""

from __future__ import annotations

import pytest
from transformers import GenerationConfig

from medmvl.data.sample import Message, Sample
from medmvl.errors import CheckpointError, DataError
from medmvl.models import MedMVLConfig
from medmvl.processing import MedMVLProcessor
from medmvl.serving.vllm_plugin.checks import check_answer_end, check_model
from medmvl.serving.vllm_plugin.prompt import chat_ids, collapsed, text_ids
from medmvl.serving.vllm_plugin.uploads import UploadLoader

IMAGE, VOLUME = {"type": "image"}, {"type": "video"}
CPU_SIZES = [32, 64, 80]


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


@pytest.fixture(scope="module")
def processor(model_folder) -> MedMVLProcessor:
    return MedMVLProcessor.from_pretrained(model_folder)


def expanded(processor: MedMVLProcessor, ids: list[int]) -> list[int]:
    """Repeat placeholders as vLLM does."""
    counts = {one.token_id: one.tokens for one in processor.placeholders.values()}
    return [token for one in ids for token in [one] * counts.get(one, 1)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([IMAGE, text("Is it?")], "<image>\nIs it?"),
        ([text("Before:"), IMAGE, text("After:"), IMAGE, text("What changed?")], None),
        ([VOLUME, IMAGE, text("Compare.")], "<image3d>\n<image>\nCompare."),
        ([IMAGE, IMAGE, VOLUME, VOLUME, text("Compare.")], "<image>\n<image>\n<image3d>\n<image3d>\nCompare."),
        ([text("Hello.")], "Hello."),
        ("Hello.", "Hello."),
    ],
)
def test_chat_has_the_prompt_of_the_same_record(processor, content, expected):
    ids = chat_ids(processor, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}])
    plain = expected or "Before:\n<image>\nAfter:\n<image>\nWhat changed?"
    sample = Sample("x", (Message("system", "Be brief."), Message("user", plain)))
    counts = {"images": plain.count("<image>"), "volumes": plain.count("<image3d>")}
    assert expanded(processor, ids) == processor.encode_text(sample, train=False, **counts)[0]
    assert len(ids) <= len(expanded(processor, ids))


def test_second_turn_keeps_the_first_ones_image(processor):
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [IMAGE, text("What is it?")]},
        {"role": "assistant", "content": [text("A lung.")]},
        {"role": "user", "content": [text("Which side?")]},
    ]
    messages = [
        ("system", "Be brief."),
        ("user", "<image>\nWhat is it?"),
        ("assistant", "A lung."),
        ("user", "Which side?"),
    ]
    sample = Sample("x", tuple(Message(role, value) for role, value in messages))
    assert expanded(processor, chat_ids(processor, turns)) == processor.encode_text(sample, train=False, images=1)[0]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"role": "user", "content": [{"type": "audio"}]}], "content\\[0\\] has the type 'audio'"),
        ([{"role": "user", "content": [IMAGE, text("<image> again")]}], "placeholder"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "must be the user's"),
        ([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}], "about tools"),
    ],
)
def test_what_a_chat_cannot_hold_is_named(processor, turns, message):
    with pytest.raises(DataError, match=message):
        chat_ids(processor, turns)


def test_finished_prompt_keeps_one_token_per_image(processor):
    prompt = "<image>\nIs it? <image3d>"
    assert text_ids(processor, prompt) == processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_neighboring_images_stay_two():
    assert collapsed([5, 7, 7, 7, 7, 8, 8, 8, 6], {7: 2, 8: 3}) == [5, 7, 7, 8, 6]


def llm(**settings) -> MedMVLConfig:
    return MedMVLConfig(text_config={"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **settings})


def test_head_size_of_the_cpu_build_is_checked():
    check_model(llm(), ["Qwen2ForCausalLM"], 32, CPU_SIZES)
    check_model(llm(), ["Qwen2ForCausalLM"], 24, None)
    with pytest.raises(CheckpointError, match=r"heads have size 24, and vLLM's CPU build takes 32, 64, 80\. Use"):
        check_model(llm(), ["Qwen2ForCausalLM"], 24, CPU_SIZES)


@pytest.mark.parametrize("config", [llm(), llm(architectures=None)], ids=["named", "by model type"])
def test_llm_that_vllm_lacks_is_named(config):
    with pytest.raises(CheckpointError, match="vLLM has no LLM of the class Qwen2ForCausalLM"):
        check_model(config, ["LlamaForCausalLM"], 32, CPU_SIZES)


def test_missing_end_token_is_refused(processor):
    ends = processor.end_token_ids(GenerationConfig())
    assert check_answer_end(processor, GenerationConfig(eos_token_id=ends)) == []
    with pytest.raises(CheckpointError, match=r"lacks the token ids \["):
        check_answer_end(processor, GenerationConfig())
    notes = check_answer_end(processor, GenerationConfig(eos_token_id=ends, repetition_penalty=1.2))
    assert notes == ["vLLM does not follow repetition_penalty of generation_config.json as `medmvl serve` does."]


def test_reading_options_of_an_upload_are_checked():
    assert UploadLoader.load_bytes(b"data", num_frames=32, units="HU").read == {"units": "HU"}
    with pytest.raises(ValueError, match="media_io_kwargs.video"):
        UploadLoader.load_bytes(b"data", unit="HU")
