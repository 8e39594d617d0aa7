"""The native chat templates, against the text that the models' own tokenizers render (as published with the models)."""

from __future__ import annotations

import pytest
from tests.tiny import make_tokenizer
from transformers import PreTrainedTokenizerFast

from medmvl.data.sample import Message
from medmvl.models.llms import LLM_FAMILIES
from medmvl.processing.chat import render
from medmvl.processing.templates import load_template, native_template, template_names

CHAT = (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Bye"))
WITH_SYSTEM = (Message("system", "Be brief."), *CHAT)

#: template -> (bos, eos, prompt for CHAT, prompt for WITH_SYSTEM)
EXPECTED = {
    "qwen2.5-chat": (
        None,
        "<|im_end|>",
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    ),
    "smollm2-chat": (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3-chat": (
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
        "\n\nHello.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\n",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama2-chat": (
        "<s>",
        "</s>",
        "<s>[INST] Hi [/INST] Hello. </s><s>[INST] Bye [/INST]",
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST]",
    ),
    "phi3-chat": (
        "<s>",
        "<|endoftext|>",
        "<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n",
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n",
    ),
    "gemma-chat": (
        "<bos>",
        "<eos>",
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n<start_of_turn>user\nBye"
        "<end_of_turn>\n<start_of_turn>model\n",
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    ),
    "phi2-qa": (
        "<|endoftext|>",
        "<|endoftext|>",
        "Instruct: Hi\nOutput: Hello.<|endoftext|>\nInstruct: Bye\nOutput:",
        "Be brief.\nInstruct: Hi\nOutput: Hello.<|endoftext|>\nInstruct: Bye\nOutput:",
    ),
}


def tokenizer_with(bos: str | None, eos: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": eos, **({"bos_token": bos} if bos else {})})
    return tokenizer


@pytest.mark.parametrize("name", EXPECTED)
def test_prompt(name: str) -> None:
    bos, eos, plain, with_system = EXPECTED[name]
    tokenizer = tokenizer_with(bos, eos)
    assert render(CHAT, load_template(name), tokenizer, ask=True).text == plain
    assert render(WITH_SYSTEM, load_template(name), tokenizer, ask=True).text == with_system


@pytest.mark.parametrize("name", [*EXPECTED, "chatml", "plain"])
def test_an_answer_is_learnt_with_its_end_and_nothing_else(name: str) -> None:
    bos, eos = EXPECTED.get(name, (None, "<|im_end|>"))[:2]
    rendered = render(WITH_SYSTEM[:3], load_template(name), tokenizer_with(bos, eos))
    (span,) = rendered.spans
    learned = rendered.text[slice(*span)]
    ends = {end for family in LLM_FAMILIES.values() for end in family.turn_ends}
    assert learned.strip().startswith("Hello.")
    assert learned.strip().removeprefix("Hello.").strip() in ends


def test_the_table_names_templates_that_exist() -> None:
    assert {name for family in LLM_FAMILIES.values() for name in family.templates} <= set(template_names())


@pytest.mark.parametrize(
    ("token", "template"),
    [("<|eot_id|>", "llama3-chat"), ("<start_of_turn>", "gemma-chat"), ("<|end|>", "phi3-chat"), ("</s>", "plain")],
)
def test_the_tokenizers_own_format_is_told_by_its_tokens(token: str, template: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer, eos_token=token)
    vocabulary = {word: index for word, index in tokenizer.get_vocab().items() if not word.startswith("<|im")}
    tokenizer.get_vocab = lambda: vocabulary  # type: ignore[method-assign]
    assert native_template(tokenizer) == template
