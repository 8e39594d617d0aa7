"""`medmvl serve --backend`: the visual part stays here, the LLM runs in a server with vLLM's routes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from medmvl import Predictor
from medmvl.checkpoints import export_llm
from medmvl.errors import CheckpointError, RecipeError
from medmvl.inference import GenerationOptions
from medmvl.inference.questions import question
from medmvl.serving.server.engine import check_embeddings
from medmvl.serving.server.failures import RequestError
from medmvl.serving.server.settings import ServerSettings
from serving.fake_engine import FakeEngine, fake_engine
from serving.live import Live, live, part, user
from tiny import make_model
from waiting import wait_for

QUESTION, TOKENS = "Is there a pleural effusion?", 8


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """The tiny model with large weights, so that its answers depend on what it is shown."""
    model, processor = make_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in (*model.language_model.parameters(), *model.towers.parameters()):
            if weight.ndim == 2:
                weight.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("varied") / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llm_folder(model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "llm"
    assert any("size 8" in note for note in export_llm(model_folder, folder))
    return folder


@pytest.fixture(scope="module")
def engine(llm_folder) -> Iterator[tuple[FakeEngine, str]]:
    with fake_engine(llm_folder) as running:
        yield running


@pytest.fixture(scope="module")
def server(model_folder, engine) -> Iterator[Live]:
    with live(model_folder, backend=engine[1]) as running:
        yield running


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:
    return Predictor.from_pretrained(model_folder)


def ask(server: Live, messages, **options):
    with server.client() as client:
        extra = {"return_token_ids": True, **options.pop("extra_body", {})}
        return client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=TOKENS, extra_body=extra, **options
        )


def tokens(predictor: Predictor, text: str, images=(), volumes=()):
    encoded = predictor.encode(question(text, len(images), len(volumes)), images, volumes)
    return predictor.generate([encoded], GenerationOptions(max_new_tokens=TOKENS))[0]


def long_answer(server: Live, media: Path):
    """Return a question, its answer, and a letter or digit within it."""
    for parts in ([hu(media / "a.npy")], [hu(media / "b.npy")], [part("image", media / "a.png")]):
        for text in (QUESTION, "What is seen?", "Why?"):
            answer = ask(server, user(text, *parts)).choices[0].message.content
            inside = [char for char in answer[1:-1] if char.isascii() and char.isalnum()]
            if inside:
                return user(text, *parts), answer, inside[0]
    raise AssertionError("no answer holds a letter")


def wait_until_idle(server: Live, engine: FakeEngine) -> None:
    server.wait_until_idle()
    wait_for(lambda: not engine.open, what="the engine answers nobody")


def hu(file: Path) -> dict:
    return part("volume", file, read={"units": "HU"})


def test_exported_llm_loads_in_transformers(llm_folder, predictor):
    llm = AutoModelForCausalLM.from_pretrained(llm_folder)
    ids = torch.arange(10)[None]
    assert torch.equal(llm(input_ids=ids).logits, predictor.model(input_ids=ids).logits)
    assert AutoTokenizer.from_pretrained(llm_folder).eos_token == predictor.processor.tokenizer.eos_token
    assert llm.config.architectures == ["Qwen2ForCausalLM"]
    assert {file.stat().st_mode & 0o777 for file in llm_folder.iterdir()} == {0o644}


def test_answers_are_the_predictors(server, predictor, media):
    image, volume = str(media / "a.png"), str(media / "b.npy")
    for images, volumes, parts in (
        ([image], [], [part("image", media / "a.png")]),
        ([], [volume], [hu(media / "b.npy")]),
        ([image, str(media / "b.png")], [volume], [part("image", media / f"{name}.png") for name in "ab"] + [hu(media / "b.npy")]),
        ([], [], []),
    ):  # fmt: skip
        found = ask(server, user(QUESTION, *parts), logprobs=True, top_logprobs=3)
        expected = tokens(predictor, QUESTION, images, volumes)
        choice = found.choices[0]
        assert choice.token_ids == expected.token_ids
        assert choice.message.content == expected.text
        assert choice.confidence == pytest.approx(expected.confidence, rel=1e-3)
        assert [len(token.top_logprobs) for token in choice.logprobs.content] == [3] * len(expected.token_ids)
        assert choice.finish_reason == ("length" if len(expected.token_ids) == TOKENS else "stop")


def test_stream_and_stop_string(server, predictor, media):
    asked, answer, stop = long_answer(server, media)
    with server.client() as client:
        pieces = client.chat.completions.create(model="tiny", messages=asked, max_tokens=TOKENS, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == answer
    stopped = ask(server, asked, stop=[stop]).choices[0]
    assert stopped.message.content == answer[: answer.index(stop)].strip()
    assert stopped.finish_reason == "stop"


def test_engine_stops_when_an_answer_has_ended(server, engine, media):
    asked, _, stop = long_answer(server, media)
    assert len(ask(server, asked, stop=[stop]).choices[0].token_ids) < TOKENS
    wait_until_idle(server, engine[0])


def test_client_that_hangs_up_ends_its_answer_in_the_engine(server, engine):
    before, engine[0].waits_after = len(engine[0].bodies), 3  # else the tiny model may have answered before
    try:
        with server.client() as client:
            pieces = client.chat.completions.create(model="tiny", messages=user("Why?"), max_tokens=400, stream=True)
            next(iter(pieces))
            pieces.close()
        wait_until_idle(server, engine[0])
    finally:
        engine[0].waits_after = None
    assert len(engine[0].bodies) == before + 1
    assert engine[0].streamed == 3


def test_answers_depend_on_what_is_shown(predictor, media):
    found = [tokens(predictor, QUESTION, [], [str(media / f"{name}.npy")]).token_ids for name in "ab"]
    assert found[0] != found[1]
    assert min(len(set(ids)) for ids in found) > 1  # else equal answers would say little


def test_requests_at_once_get_their_own_answers(server, predictor, media):
    files = [media / f"{name}.png" for name in "abc"] * 4
    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(lambda file: ask(server, user(QUESTION, part("image", file))), files))
    for file, reply in zip(files, found, strict=True):
        assert reply.choices[0].token_ids == tokens(predictor, QUESTION, [str(file)]).token_ids


def test_sampling_is_passed_on(server, engine):
    ask(server, user("Hello."), temperature=0.7, top_p=0.9, seed=5, n=2)
    bodies = engine[0].bodies[-2:]
    assert {(body["temperature"], body["top_p"]) for body in bodies} == {(0.7, 0.9)}
    assert len({body["seed"] for body in bodies}) == 2
    assert all(0 <= body["seed"] < 2**63 for body in bodies)


@pytest.mark.parametrize(("status", "code"), [(503, 503), (429, 503), (400, 502), (500, 502)])
def test_refusal_of_the_engine_has_a_status(server, engine, media, status, code):
    engine[0].status = status
    try:
        with pytest.raises(openai.APIStatusError) as raised:
            ask(server, user(QUESTION, part("image", media / "a.png")))
    finally:
        engine[0].status = 200
    assert raised.value.status_code == code
    ask(server, user(QUESTION, part("image", media / "a.png")))


@pytest.mark.parametrize(
    ("setting", "value", "said", "code"),
    [("breaks_after", 2, "broke off", 503), ("logprob", float("nan"), "another form", 502)],
    ids=["broken stream", "probability that is no number"],
)
def test_faulty_reply_is_no_answer(server, engine, setting, value, said, code):
    setattr(engine[0], setting, value)
    try:
        with pytest.raises(openai.APIStatusError, match=said) as raised:
            ask(server, user("Hello."))
    finally:
        setattr(engine[0], setting, None)
    assert raised.value.status_code == code


def test_constraint_is_refused(server):
    with pytest.raises(openai.BadRequestError, match="Constrained answers are not offered"):
        ask(server, user("Hello."), extra_body={"structured_outputs": {"choice": ["Yes", "No"]}})


def test_embeddings_that_are_not_finite_are_not_sent(server, engine, media):
    weight = server.service.asking.predictor.model.towers["image"].connector.projector[0].bias
    sent, kept = len(engine[0].bodies), weight.data.clone()
    weight.data.fill_(np.nan)
    try:
        with pytest.raises(openai.InternalServerError, match="not finite"):
            ask(server, user("Is it new?", part("image", media / "b.png")))
    finally:
        weight.data.copy_(kept)
    assert len(engine[0].bodies) == sent


@pytest.mark.parametrize("shape", [(3, 8), (4, 7), (1, 4, 8)])
def test_embeddings_of_another_shape_are_not_sent(shape):
    check_embeddings(torch.zeros(4, 8), 4, 8)
    with pytest.raises(RequestError, match="has the shape"):
        check_embeddings(torch.zeros(shape), 4, 8)


def test_context_of_the_engine_is_the_limit(model_folder, llm_folder):
    with (
        fake_engine(llm_folder, context=64) as (_, url),
        live(model_folder, backend=url) as running,
        pytest.raises(openai.BadRequestError, match="together at most 64 fit"),
    ):
        ask(running, user("Is it? " * 30))


def test_engine_with_another_model_is_refused(tmp_path, model_folder):
    model, processor = make_model(seed=1)
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    export_llm(tmp_path / "other", tmp_path / "llm")
    with (
        fake_engine(tmp_path / "llm") as (_, url),
        pytest.raises(CheckpointError, match="another probability"),
        live(model_folder, backend=url),
    ):
        pass


@pytest.mark.parametrize(("url", "message"), [("127.0.0.1:1/v1", "begins with http"), ("http://127.0.0.1:1/v1", "No vLLM server answers")])  # fmt: skip
def test_missing_engine_is_named(model_folder, url, message):
    with pytest.raises(RecipeError, match=message), live(model_folder, backend=url):
        pass


def test_page_needs_the_llm_here():
    with pytest.raises(RecipeError, match="exclude each other"):
        ServerSettings("tiny", page=True, backend="http://127.0.0.1:1/v1")
