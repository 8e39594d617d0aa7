"""Answering in batches: where answers end, and how they are sampled."""

from __future__ import annotations

import json

import pytest
import torch
from tests.tiny import IMAGE_SIZE, LLM, SIGLIP, make_tokenizer

from medmvl import Predictor
from medmvl.checkpoints.gguf.export import export_gguf
from medmvl.checkpoints.llava_export import export_llava
from medmvl.data.sample import Message, Sample
from medmvl.errors import RecipeError
from medmvl.inference import GenerationOptions, generate_answers
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.processing import ImageProcessor, MedMVLProcessor
from medmvl.processing.templates import template_names

ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>", "<|endoftext|>")
ROW = Sample("a", (Message("user", "Is there a nodule?"),))


def make(template: str, tokens: tuple[str, ...] = ENDS) -> tuple[MedMVLForConditionalGeneration, MedMVLProcessor]:
    """Return an image model whose tokenizer has an eos token that no chat template uses."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<eos>", "additional_special_tokens": list(tokens)})
    model = MedMVLForConditionalGeneration.from_parts(
        {**LLM, "vocab_size": len(tokenizer), "tie_word_embeddings": False},
        image=({"name": "siglip", "vision_config": SIGLIP}, "mlp2x_gelu"),
    )
    image = ImageProcessor.for_size(IMAGE_SIZE, IMAGE_SIZE)
    processor = MedMVLProcessor.from_parts(model.config, tokenizer, image=image, template=template)
    return model.eval(), processor


def always_says(model: MedMVLForConditionalGeneration, ids: list[int]) -> None:
    """Make a model say `ids` again and again, by the position of the token."""
    original = model.language_model.forward
    said = {"steps": 0}

    def forward(*args, **kwargs):
        output = original(*args, **kwargs)
        output.logits = torch.zeros_like(output.logits)
        output.logits[..., ids[said["steps"] % len(ids)]] = 10.0
        said["steps"] += 1
        return output

    model.language_model.forward = forward


def end_of(processor: MedMVLProcessor) -> int:
    return next(iter(processor.stop_token_ids), processor.tokenizer.eos_token_id)


@pytest.mark.parametrize("template", template_names())
def test_predictor_and_generate_end_at_the_templates_token(template):
    model, processor = make(template)
    word = processor.tokenizer.convert_tokens_to_ids("a")
    end = end_of(processor)
    processor.configure_generation(model.generation_config)
    always_says(model, [word, end])
    prompt = {"input_ids": processor(text="Is there?")["input_ids"][0]}  # some templates take images only
    batch = processor.collate([prompt], padding_side="left")
    new = model.generate(**batch, max_new_tokens=6, do_sample=False)[0, batch["input_ids"].shape[1] :].tolist()
    assert new == [word, end]
    always_says(model, [word, end])
    (answer,) = generate_answers(model, processor, [prompt], GenerationOptions(max_new_tokens=6))
    assert (answer.token_ids, answer.text) == ([word, end], "a")


@pytest.mark.parametrize("template", template_names())
def test_written_folders_end_at_the_templates_token(template, tmp_path):
    gguf = pytest.importorskip("gguf")
    model, processor = make(template)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    export_llava(tmp_path / "ours", tmp_path / "llava")
    for folder in ("ours", "llava"):
        ends = json.loads((tmp_path / folder / "generation_config.json").read_text())["eos_token_id"]
        assert end_of(processor) in (ends if isinstance(ends, list) else [ends])
    if processor.stop_token_ids:
        export_gguf(tmp_path / "ours", tmp_path / "gguf")
        field = gguf.GGUFReader(tmp_path / "gguf" / "model.gguf").fields["tokenizer.ggml.eot_token_id"]
        assert field.contents() == end_of(processor)


def test_an_end_that_is_plain_text_stops_the_answer(caplog):
    model, processor = make("chatml", tokens=())
    tokenizer = processor.tokenizer
    processor.chat_template = processor.chat_template.replace("<|im_end|>", "###")
    processor._warn_of_turn_end("chatml")
    assert "'###'" in caplog.text
    ids = tokenizer("a###b", add_special_tokens=False)["input_ids"]
    always_says(model, ids)
    (answer,) = generate_answers(
        model, processor, [processor.encode(ROW, train=False)], GenerationOptions(max_new_tokens=20)
    )
    assert answer.text == "a"
    assert tokenizer.decode(answer.token_ids) == "a###"


def test_samples_depend_on_seed_and_key_and_not_on_the_batch(model_folder):
    predictor = Predictor.from_pretrained(model_folder)
    rows = [predictor.encode(Sample(str(i), (Message("user", "Is there?" + " Why?" * (i % 2)),))) for i in range(4)]
    options = GenerationOptions(max_new_tokens=6, temperature=1.0)
    keys = ["a", "b", "c", "d"]

    def sampled(chosen: list[int], **changes: int) -> list[list[int]]:
        settings = GenerationOptions(max_new_tokens=6, temperature=1.0, **changes) if changes else options
        answers = predictor.generate([rows[i] for i in chosen], settings, keys=[keys[i] for i in chosen])
        return [answer.token_ids for answer in answers]

    together = sampled([0, 1, 2, 3])
    assert [sampled([i])[0] for i in range(4)] == together
    assert together[0] != together[2]  # the same question, another key
    assert sampled([0, 1, 2, 3], seed=1) != together


def test_sampling_follows_the_softmax(model_folder):
    from medmvl.inference.sampling import RowSampler, row_seed

    logits = torch.tensor([[0.0, 1.0, -1.0]]).expand(4000, 3)
    drawn = RowSampler([row_seed(0, str(i)) for i in range(4000)], temperature=0.5)(torch.empty(0), logits).argmax(1)
    expected = torch.softmax(logits[0] / 0.5, dim=0)
    assert torch.bincount(drawn, minlength=3) / 4000 == pytest.approx(expected.numpy(), abs=0.03)


def test_sampling_with_beams_is_refused():
    with pytest.raises(RecipeError, match="exclude each other"):
        GenerationOptions(temperature=1.0, num_beams=2)
