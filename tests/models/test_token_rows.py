"""Tokens and rows of the embedding table: resizing, tokens without a row, and prompts without a mask."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import LLM, make_model, make_tokenizer

from medmvl import Predictor
from medmvl.errors import CheckpointError, ModelError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.processing import MedMVLProcessor


def text_model(tied: bool) -> tuple[MedMVLForConditionalGeneration, MedMVLProcessor]:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    llm = {**LLM, "vocab_size": len(tokenizer), "tie_word_embeddings": tied}
    model = MedMVLForConditionalGeneration.from_parts(llm).eval()
    return model, MedMVLProcessor.from_parts(model.config, tokenizer)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("multiple", [None, 64])
def test_resized_embeddings_keep_logits_and_survive_saving(tied, multiple, tmp_path):
    model, processor = text_model(tied)
    batch = processor(text="Is there a nodule?")
    with torch.no_grad():
        before = model(**batch).logits
    processor.tokenizer.add_tokens(["<nodule>"])
    model.resize_token_embeddings(len(processor.tokenizer), pad_to_multiple_of=multiple)
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows == (384 if multiple else len(processor.tokenizer))
    ids = torch.cat([batch["input_ids"], torch.tensor([[processor.tokenizer.convert_tokens_to_ids("<nodule>")]])], 1)
    with torch.no_grad():
        output = model(**batch, labels=batch["input_ids"])
        with_new = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(output.logits[..., : before.shape[-1]], before)
    assert output.logits.shape[-1] == rows == model.config.text_config.vocab_size
    assert torch.isfinite(with_new.loss)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = Predictor.from_pretrained(tmp_path).model
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, output.logits)
    shared = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert shared == tied


def test_a_head_can_be_replaced():
    model, processor = text_model(tied=False)
    head = torch.nn.Linear(LLM["hidden_size"], model.config.text_config.vocab_size, bias=False)
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head
    with torch.no_grad():
        hidden = model(**processor(text="Is it?"), output_hidden_states=True)
    torch.testing.assert_close(hidden.logits, head(hidden.hidden_states[-1]))


def test_a_resize_that_cuts_the_end_token_is_refused():
    model, processor = text_model(tied=True)
    processor.configure_generation(model.generation_config)
    with pytest.raises(ModelError, match="would have no row"):
        model.resize_token_embeddings(2)


def test_a_token_without_a_row_is_refused_in_the_batch():
    model, processor = text_model(tied=True)
    processor.tokenizer.add_tokens(["<nodule>"])
    batch = processor(text="Is there a <nodule>?")
    new = processor.tokenizer.convert_tokens_to_ids("<nodule>")
    with pytest.raises(ModelError, match=f"token id {new}"):
        model(**batch)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused_at_load(tmp_path):
    model, processor = text_model(tied=True)
    processor.tokenizer.add_tokens(["<nodule>"])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="'<nodule>'"):
        Predictor.from_pretrained(tmp_path)


def test_a_padded_batch_without_a_mask_is_answered_as_with_one():
    model, processor = make_model()
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    batch = processor(text=["Is there a pleural effusion on the right side?", "Why?"])
    options = {"max_new_tokens": 8, "do_sample": False}
    masked = model.generate(**batch, **options)
    assert torch.equal(model.generate(input_ids=batch["input_ids"], **options), masked)
