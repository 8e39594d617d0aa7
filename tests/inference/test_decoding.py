"""Continuous batching: rows join and leave at any step and get the tokens that they would get alone."""

from __future__ import annotations

import json
import time

import pytest
import torch
from PIL import Image

from medmvl import MedMVLForConditionalGeneration, Predictor
from medmvl.errors import CheckpointError, DataError, RecipeError
from medmvl.inference import GenerationOptions
from medmvl.inference.constraints import Grammars
from medmvl.inference.decoding import Decoder, Row, RowOptions
from medmvl.inference.decoding.prefixes import Prefixes, content_of
from medmvl.inference.questions import question
from medmvl.processing import ImageProcessor, MedMVLProcessor
from tiny import IMAGE_SIZE, LLM, SIGLIP, make_tokenizer

QUESTIONS = ["Is there a nodule?", "Why?", "Which side is it on, left or right?", "Is there a nodule on the right?"]


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:
    return Predictor.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def prompts(predictor, media) -> list[dict[str, torch.Tensor]]:
    """Every question about three images, one about a volume, and one without either."""
    pictures = [str(media / f"{name}.png") for name in "abc"]
    encoded = [predictor.encode(question(text, 1, 0), [picture], []) for text in QUESTIONS for picture in pictures]
    encoded.append(predictor.encode(question(QUESTIONS[0], 0, 1), [], [str(media / "a.npy")]))
    encoded.append(predictor.encode(question(QUESTIONS[0], 0, 0), [], []))
    return encoded


def decode(decoder: Decoder, rows: list[Row], first: int | None = None) -> list[Row]:
    """Decode rows, of which those behind the first join later, two at each step."""
    first = len(rows) if first is None else first
    decoder.add(rows[:first])
    waiting = rows[first:]
    while decoder.rows or waiting:
        decoder.step()
        decoder.add(waiting[:2])
        waiting = waiting[2:]
    return rows


def alone(predictor: Predictor, prompts, **options) -> list[list[int]]:
    """Return the tokens that transformers' own `generate` gives for each prompt alone."""
    found = []
    for place, prompt in enumerate(prompts):
        inputs = {key: value for key, value in prompt.items() if key != "input_ids"}
        out = predictor.model.generate(
            prompt["input_ids"][None], **inputs, max_new_tokens=5 + place, do_sample=False, **options
        )
        found.append(out[0, len(prompt["input_ids"]) :].tolist())
    return found


def make_rows(prompts, **options) -> list[Row]:
    """Return rows of different lengths, so that they leave at different steps."""
    return [Row(prompt, RowOptions(max_new_tokens=5 + place, **options)) for place, prompt in enumerate(prompts)]


@pytest.mark.parametrize("first", [14, 3, 0])
def test_rows_that_join_later_get_the_same_tokens(predictor, prompts, first):
    decoder = Decoder(predictor.model, predictor.processor)
    rows = decode(decoder, make_rows(prompts), first)
    assert [row.token_ids for row in rows] == alone(predictor, prompts)
    assert not decoder.rows
    assert not decoder._texts


def test_a_shared_prefix_is_run_once(predictor, prompts):
    decoder = Decoder(predictor.model, predictor.processor)
    rows = decode(decoder, make_rows(prompts[::3][:4]))  # four questions about one image
    visual = predictor.processor.image_tokens
    assert rows[0].reused == 0
    assert all(row.reused > visual for row in rows[1:])
    assert decoder.visual_cache.encoded == 1
    without = Decoder(predictor.model, predictor.processor, prefixes=Prefixes(0))
    assert [row.token_ids for row in decode(without, make_rows(prompts[::3][:4]))] == [row.token_ids for row in rows]
    assert without.prefixes.hits == 0


def test_kept_prefixes_stay_below_their_limit(predictor, prompts):
    decoder = Decoder(predictor.model, predictor.processor)
    decode(decoder, make_rows(prompts[:1]))
    one = decoder.prefixes.size
    small = Decoder(predictor.model, predictor.processor, prefixes=Prefixes(int(2.5 * one)))
    decode(small, make_rows(prompts[:3]))
    assert 0 < small.prefixes.size <= 2.5 * one


def test_pictures_with_equal_tokens_share_no_prefix():
    ids = torch.tensor([1, 9, 9, 9, 2, 3, 4, 5, 6, 7, 8])
    one, other = (content_of(ids, {9: [key * 32]}) for key in "ab")
    assert one[0] == other[0] == 1
    assert not set(one[1:4]) & set(other[1:4])
    kept = Prefixes()
    assert kept.longest(one) is None


def test_rules_about_repetition_are_followed(predictor, prompts):
    model = predictor.model
    before = model.generation_config.repetition_penalty, model.generation_config.no_repeat_ngram_size
    try:
        model.generation_config.repetition_penalty, model.generation_config.no_repeat_ngram_size = 1.3, 3
        rows = decode(Decoder(model, predictor.processor), make_rows(prompts[:4]), first=1)
        assert [row.token_ids for row in rows] == alone(predictor, prompts[:4])
    finally:
        model.generation_config.repetition_penalty, model.generation_config.no_repeat_ngram_size = before


def test_unknown_rules_are_refused_by_name(predictor):
    predictor.model.generation_config.min_new_tokens = 3
    try:
        with pytest.raises(CheckpointError, match="min_new_tokens"):
            Decoder(predictor.model, predictor.processor)
    finally:
        predictor.model.generation_config.min_new_tokens = None


def test_sampling_is_that_of_the_predictor(predictor, prompts):
    options = GenerationOptions(max_new_tokens=8, temperature=1.0, seed=5)
    expected = [predictor.generate([prompt], options)[0] for prompt in prompts[:4]]
    rows = [Row(prompt, RowOptions(max_new_tokens=8, temperature=1.0, seed=5)) for prompt in prompts[:4]]
    decode(Decoder(predictor.model, predictor.processor), rows, first=1)
    assert [row.token_ids for row in rows] == [answer.token_ids for answer in expected]
    assert [row.confidence for row in rows] == pytest.approx([answer.confidence for answer in expected], rel=1e-3)


def test_a_small_nucleus_is_greedy(predictor, prompts):
    decoder = Decoder(predictor.model, predictor.processor)
    sampled = decode(decoder, make_rows(prompts[:3], temperature=1.0, top_p=1e-6))
    greedy = decode(decoder, make_rows(prompts[:3]))
    assert [row.token_ids for row in sampled] == [row.token_ids for row in greedy]
    with pytest.raises(RecipeError, match="top_p"):
        RowOptions(top_p=0)


def test_recorded_logprobs_are_those_of_the_model(predictor, prompts):
    row = decode(Decoder(predictor.model, predictor.processor), make_rows(prompts[:1], top_logprobs=3))[0]
    whole = torch.cat([prompts[0]["input_ids"], torch.tensor(row.token_ids)])
    with torch.no_grad():
        logits = predictor.model(whole[None], pixel_values=prompts[0]["pixel_values"]).logits[0]
    logs = torch.log_softmax(logits, -1)[len(prompts[0]["input_ids"]) - 1 : -1]
    expected = logs[range(len(row.token_ids)), row.token_ids].tolist()
    assert row.logprobs == pytest.approx(expected, abs=1e-4)
    assert [top[0] for top in row.top] == [
        (token, pytest.approx(log)) for token, log in zip(row.token_ids, row.logprobs, strict=True)
    ]


def test_a_cancelled_row_leaves_the_others_alone(predictor, prompts):
    decoder = Decoder(predictor.model, predictor.processor)
    rows = make_rows(prompts[:5])
    decoder.add(rows)
    decoder.step()
    decoder.cancel(rows[0])
    decoder.cancel(rows[0])
    while decoder.rows:
        decoder.step()
    assert rows[0].finish == "cancelled"
    assert [row.token_ids for row in rows[1:]] == alone(predictor, prompts[:5])[1:]


@pytest.mark.parametrize("stop", [0, 2])
def test_stop_strings_end_answers_and_are_not_part_of_them(predictor, prompts, stop):
    decoder = Decoder(predictor.model, predictor.processor)
    row = decode(decoder, [Row(prompts[1], RowOptions(max_new_tokens=24, temperature=1.0, seed=2))])[0]
    text = decoder.text(row).final(row.token_ids)
    word = text.split()[1][stop : stop + 3]
    stopped = Row(prompts[1], RowOptions(max_new_tokens=24, temperature=1.0, seed=2, stops=("never", word)))
    decode(decoder, [stopped])
    assert stopped.finish == "stop"
    assert decoder.text(stopped).final(stopped.token_ids) == text.split(word)[0].strip()
    reader, pieces = decoder.text(stopped), []
    for length in range(1, len(stopped.token_ids) + 1):
        pieces.append(reader.piece(stopped.token_ids[:length], length == len(stopped.token_ids)))
    assert "".join(pieces) == text.split(word)[0].strip()


@pytest.mark.parametrize("seed", range(6))
def test_pieces_together_are_the_answer(predictor, prompts, seed):
    decoder = Decoder(predictor.model, predictor.processor)
    row = decode(decoder, [Row(prompts[0], RowOptions(40, temperature=1.5, seed=seed))])[0]
    reader = decoder.text(row)
    ends = range(1, len(row.token_ids) + 1)
    pieces = [reader.piece(row.token_ids[:end], end == len(row.token_ids)) for end in ends]
    assert "".join(pieces) == decoder.text(row).final(row.token_ids)
    assert sum(bool(piece) for piece in pieces) > 3


@pytest.fixture(scope="module")
def grammars(predictor) -> Grammars:
    model, processor = predictor.model, predictor.processor
    size = model.config.text_config.vocab_size
    return Grammars(processor.tokenizer, size, processor.end_token_ids(model.generation_config))


def test_constrained_answers_follow_their_grammar(predictor, prompts, grammars):
    schema = {
        "type": "object",
        "properties": {"side": {"enum": ["left", "right"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["side", "count"],
        "additionalProperties": False,
    }
    kinds = [grammars.choice(["Yes.", "No, none"]), grammars.regex(r"[0-9]{2} mm"), grammars.json_schema(schema), None]
    rows = [Row(prompt, RowOptions(60), kind) for prompt, kind in zip(prompts, kinds, strict=False)]
    decoder = Decoder(predictor.model, predictor.processor)
    decode(decoder, rows, first=2)
    choice, regex, found, free = (decoder.text(row).final(row.token_ids) for row in rows)
    assert choice in ("Yes.", "No, none")
    assert regex[:2].isdecimal()
    assert regex[2:] == " mm"
    assert set(json.loads(found)) == {"side", "count"}
    assert [row.finish for row in rows[:3]] == ["stop"] * 3
    assert free == predictor.generate([prompts[3]], GenerationOptions(60))[0].text


@pytest.mark.parametrize("bad", [("regex", "("), ("choice", []), ("choice", [""]), ("json_schema", {"type": "odd"})])
def test_wrong_grammars_are_refused(grammars, bad):
    with pytest.raises(DataError):
        getattr(grammars, bad[0])(bad[1])


def test_constraint_that_explodes_fails_instead_of_ending_the_answer(grammars):
    constraint = grammars.regex("(a{1000}){1000}")
    begin, complete = time.process_time(), False
    while constraint.failure is None and not complete:
        token = int(constraint.allowed(grammars._vocabulary).nonzero()[0])
        complete = constraint.accept(token)
    assert not complete
    assert "too many" in constraint.failure
    assert "\n" not in constraint.failure
    assert time.process_time() - begin < 1  # 2 seconds and 700 MB by llguidance's own limits


def test_an_llm_with_a_sliding_window_decodes_its_rows_one_by_one(media):
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    llm = {key: value for key, value in LLM.items() if key != "model_type"}
    model = MedMVLForConditionalGeneration.from_parts(
        {**llm, "model_type": "mistral", "sliding_window": 16, "vocab_size": len(tokenizer)},
        image=({"name": "siglip", "vision_config": SIGLIP}, "linear"),
    )
    image = ImageProcessor.for_size(IMAGE_SIZE, IMAGE_SIZE)
    processor = MedMVLProcessor.from_parts(model.config, tokenizer, image=image)
    predictor = Predictor(model, processor)
    picture = Image.open(media / "a.png").convert("RGB")
    prompts = [predictor.encode(question(text, 1, 0), [picture], []) for text in QUESTIONS]
    decoder = Decoder(model, processor)
    assert not decoder.merges
    rows = decode(decoder, make_rows(prompts), first=2)
    assert [row.token_ids for row in rows] == alone(predictor, prompts)
    assert not decoder._alone
