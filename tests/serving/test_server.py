"""The OpenAI-compatible server, asked by the official client: answers, limits, faults, and what it keeps to itself."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import socket
import stat
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import openai
import pytest

from medmvl import Predictor
from medmvl.data.sample import Message, Sample
from medmvl.errors import RecipeError
from medmvl.inference import GenerationOptions
from medmvl.inference.calibration import ABSTENTION
from medmvl.inference.questions import question
from medmvl.phantoms import draw_patient, save_nifti, write_dicom_series
from medmvl.serving.server.settings import Limits, ServerSettings, limits_from, read_keys
from serving.live import Live, data_uri, get, live, part, post, user, zipped
from waiting import PATIENCE, wait_for

QUESTION = "Is there a pleural effusion?"
TOKENS = 8
SECRET = "Doe^Jane 1955-03-02"


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:
    return Predictor.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def server(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "media").mkdir()
    settings = {"audit": folder / "audit.jsonl", "media_root": folder / "media"}
    limits = Limits(body_mib=4, new_tokens=400, voxels=60_000, pixels=50_000)
    with live(model_folder, limits, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[str, Path | bytes]:
    """One phantom CT in every form in which it can be sent."""
    folder = tmp_path_factory.mktemp("scans")
    phantom = draw_patient(0, 0, size=(12, 48, 48), radiograph_size=64)
    save_nifti(folder / "ct.nii.gz", phantom)
    write_dicom_series(folder / "series", phantom)
    plain = nibabel.load(folder / "ct.nii.gz")
    nibabel.save(plain, folder / "ct.nii")
    array = np.load(io.BytesIO(_npy(plain)))
    np.savez(folder / "ct.npz", array)
    return {
        "nifti": folder / "ct.nii",
        "gzipped nifti": folder / "ct.nii.gz",
        "npz": folder / "ct.npz",
        "dicom": zipped(folder / "series"),
        "folder": folder / "series",
    }


def _npy(image: nibabel.Nifti1Image) -> bytes:
    from medmvl import read_volume

    stream = io.BytesIO()
    np.save(stream, read_volume(image.get_filename()).array)
    return stream.getvalue()


def ask(server: Live, messages, *, key: str = "none", **options):
    """Return the answer to a request whose token ids are wanted."""
    extra = {"return_token_ids": True, **options.pop("extra_body", {})}
    with server.client(key) as client:
        return client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=options.pop("max_tokens", TOKENS), extra_body=extra, **options
        )


def tokens(predictor: Predictor, text: str, images=(), volumes=(), **options) -> list[int]:
    """Return the Predictor's own token ids."""
    encoded = predictor.encode(question(text, len(images), len(volumes)), images, volumes)
    return predictor.generate([encoded], GenerationOptions(**{"max_new_tokens": TOKENS, **options}))[0].token_ids


def test_an_image_is_answered_as_by_the_predictor(server, predictor, media):
    reply = ask(server, user(QUESTION, part("image", media / "a.png")))
    expected = predictor.answer(QUESTION, images=[str(media / "a.png")], max_new_tokens=TOKENS)
    assert reply.choices[0].message.content == expected
    assert reply.choices[0].token_ids == tokens(predictor, QUESTION, [str(media / "a.png")])
    assert reply.usage.completion_tokens == len(reply.choices[0].token_ids)
    assert 0 < reply.choices[0].confidence < 1


@pytest.mark.parametrize("form", ["nifti", "gzipped nifti", "npz", "dicom"])
@pytest.mark.parametrize("kind", ["volume", "video"])
def test_a_volume_is_told_by_its_content(server, predictor, scans, form, kind):
    read = {"units": "HU"} if form == "npz" else {}
    found = ask(server, user(QUESTION, part(kind, scans[form], **({"read": read} if read else {}))))
    path = scans["folder"] if form == "dicom" else scans[form]
    prompt = predictor.processor.encode(
        question(QUESTION, 0, 1), train=False, volumes=[predictor.processor.volume_processor.prepare(_with(path, read))]
    )
    expected = predictor.generate([prompt], GenerationOptions(max_new_tokens=TOKENS))[0]
    assert found.choices[0].token_ids == expected.token_ids


def _with(path, read):
    from medmvl.data.read_options import ReadOptions, with_reading

    return with_reading([str(path)], ReadOptions.parse(read))[0]


def test_files_below_the_media_root_are_read(server, predictor, media):
    root = server.service.settings.media_root
    (root / "sub").mkdir(exist_ok=True)
    (root / "sub" / "a b.png").write_bytes((media / "a.png").read_bytes())
    reply = ask(server, user(QUESTION, part("image", f"file://{root}/sub/a%20b.png")))
    assert reply.choices[0].token_ids == tokens(predictor, QUESTION, [str(media / "a.png")])


def test_conversation_with_two_pictures_and_a_system_turn(server, predictor, media):
    pictures = [part("image", media / f"{name}.png") for name in "ab"]
    messages = [
        {"role": "developer", "content": "Be brief."},
        *user("Compare.", *pictures),
        {"role": "assistant", "content": "They differ."},
        *user("How?"),
    ]
    turns = (
        Message("system", "Be brief."),
        Message("user", "<image>\n<image>\nCompare."),
        Message("assistant", "They differ."),
        Message("user", "How?"),
    )
    paths = [str(media / f"{name}.png") for name in "ab"]
    encoded = predictor.encode(Sample("x", turns), paths, [])
    expected = predictor.generate([encoded], GenerationOptions(max_new_tokens=TOKENS))[0]
    assert ask(server, messages).choices[0].token_ids == expected.token_ids


@pytest.mark.parametrize("stopped", [False, True])
def test_a_stream_is_the_whole_answer(server, media, stopped):
    messages = user(QUESTION, part("image", media / "b.png"))
    settings = {"temperature": 1.2, "seed": 11, "max_tokens": 40, "logprobs": True}
    whole = ask(server, messages, **settings)
    if stopped:
        settings["stop"] = ["never", whole.choices[0].message.content.split()[2]]
        whole = ask(server, messages, **settings)
    with server.client() as client:
        chunks = list(
            client.chat.completions.create(
                model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}, **settings
            )
        )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    logs = [token.logprob for chunk in chunks if chunk.choices and chunk.choices[0].logprobs
            for token in chunk.choices[0].logprobs.content]  # fmt: skip
    assert logs == pytest.approx([token.logprob for token in whole.choices[0].logprobs.content], abs=1e-4)
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 1
    if stopped:
        assert settings["stop"][1] not in text
        assert whole.choices[0].finish_reason == "stop"


def test_several_sampled_answers_follow_from_the_seed(server, predictor, media):
    messages = user(QUESTION, part("image", media / "a.png"))
    one, two = (ask(server, messages, n=3, temperature=1.0, seed=7) for _ in range(2))
    found = [choice.token_ids for choice in one.choices]
    assert found == [choice.token_ids for choice in two.choices]
    assert len({tuple(ids) for ids in found}) == 3
    assert found[0] == tokens(predictor, QUESTION, [str(media / "a.png")], temperature=1.0, seed=7)
    unseeded = [ask(server, messages, temperature=1.0).choices[0].token_ids for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_logprobs_add_up_to_the_confidence(server, media):
    reply = ask(server, user(QUESTION, part("image", media / "a.png")), logprobs=True, top_logprobs=2)
    content = reply.choices[0].logprobs.content
    assert np.exp(sum(token.logprob for token in content)) == pytest.approx(reply.choices[0].confidence)
    assert all(len(token.top_logprobs) == 2 and token.top_logprobs[0].logprob == token.logprob for token in content)


def test_answers_follow_a_schema_a_choice_and_a_pattern(server):
    schema = {
        "type": "object",
        "properties": {"side": {"enum": ["left", "right"]}},
        "required": ["side"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "side", "schema": schema, "strict": True}}
    reply = ask(server, user(QUESTION), response_format=form, max_tokens=40, logprobs=True)
    assert json.loads(reply.choices[0].message.content)["side"] in ("left", "right")
    structured = {"choice": ["yes", "no"]}
    reply = ask(server, user(QUESTION), n=2, extra_body={"structured_outputs": structured})
    assert {choice.message.content for choice in reply.choices} <= {"yes", "no"}
    reply = ask(server, user(QUESTION), extra_body={"structured_outputs": {"regex": "[0-9]{2} mm"}})
    assert re.fullmatch("[0-9]{2} mm", reply.choices[0].message.content)
    assert reply.choices[0].finish_reason == "stop"


def test_a_study_is_sent_once_and_named_later(server, predictor, media):
    first = ask(server, user(QUESTION, {**part("volume", media / "a.npy"), "uuid": "study-1"}))
    before = server.service.studies.hits
    named = {"type": "volume_url", "volume_url": None, "uuid": "study-1"}
    later = ask(server, user(QUESTION, named))
    assert later.choices[0].token_ids == first.choices[0].token_ids == tokens(
        predictor, QUESTION, volumes=[str(media / "a.npy")]
    )  # fmt: skip
    assert server.service.studies.hits == before + 1
    assert later.usage.prompt_tokens_details.cached_tokens >= predictor.processor.volume_tokens
    with pytest.raises(openai.NotFoundError, match="uuid"):
        ask(server, user(QUESTION, {**named, "uuid": "study-2"}))


def test_mixed_requests_at_once_get_their_own_answers(server, predictor, media):
    studies = [("image", f"{name}.png") for name in "abc"] + [("volume", f"{name}.npy") for name in "ab"]
    work = [(kind, name, f"{QUESTION} {number}", 4 + 3 * (number % 4))
            for number, (kind, name) in enumerate(studies * 4)]  # fmt: skip

    def send(job):
        kind, name, text, length = job
        return ask(server, user(text, part(kind, media / name)), max_tokens=length).choices[0].token_ids

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(send, work))
    for (kind, name, text, length), ids in zip(work, found, strict=True):
        assert ids == tokens(predictor, text, **{f"{kind}s": [str(media / name)]}, max_new_tokens=length)
    server.wait_until_idle()


def test_a_request_joins_answers_that_are_under_way(server, media, monkeypatch):
    decoder = server.service.scheduler.decoder
    step = decoder.step

    def slow_step():
        time.sleep(0.05)  # else 400 tokens of a tiny model may be there before a busy machine sends the second request
        return step()

    monkeypatch.setattr(decoder, "step", slow_step)
    long = user(QUESTION, part("image", media / "a.png"))
    ask(server, user("short?"))
    with server.client() as client:
        stream = client.chat.completions.create(
            model="tiny", messages=long, max_tokens=400, stream=True, temperature=1, seed=3
        )
        next(iter(stream))
        ask(server, user("short?"), max_tokens=2)
        assert server.service.scheduler.running == 1, "the long answer had to end before the short one began"
        stream.close()
    server.wait_until_idle()


WRONG = {
    "another model": ({"model": "gpt-5"}, 404, "has the model 'tiny' only"),
    "unknown field": ({"tools": [{"type": "function"}]}, 400, "'tools' is not supported"),
    "penalty": ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
    "too many tokens": ({"max_tokens": 401}, 400, "at most 400"),
    "too many answers": ({"n": 9}, 400, "at most 8"),
    "context": ({"messages": user("a " * 300), "max_tokens": 300}, 400, "together at most 512"),
    "too long": ({"messages": user("word " * 2000)}, 400, "the model takes 512"),
    "no messages": ({"messages": []}, 400, "messages"),
    "wrong type": ({"temperature": SECRET}, 400, "temperature"),
    "assistant last": ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "last message"),
    "role": ({"messages": [{"role": "doctor", "content": "a"}]}, 400, "role"),
    "empty text": ({"messages": user("")}, 400, "empty"),
    "placeholder": ({"messages": user("<image> what?")}, 400, "placeholder"),
    "part type": ({"messages": user("a", {"type": "audio_url"})}, 400, "unknown type"),
    "base64": ({"messages": user("a", part("image", "data:image/png;base64,@@@"))}, 400, "base64"),
    "not base64": ({"messages": user("a", part("image", "data:text/plain,abc"))}, 400, "base64"),
    "garbage image": ({"messages": user("a", part("image", SECRET.encode()))}, 400, "image cannot be used"),
    "garbage volume": ({"messages": user("a", part("volume", SECRET.encode() * 99))}, 400, "volume cannot be used"),
    "cut gzip": ({"messages": user("a", part("volume", gzip.compress(b"x" * 999)[:60]))}, 400, "volume cannot be used"),
    "cut zip": ({"messages": user("a", part("volume", b"PK\3\4" + b"x" * 99))}, 400, "zip archive"),
    "network": ({"messages": user("a", part("image", "http://127.0.0.1:9/a.png"))}, 400, "allow-list"),
    "outside": ({"messages": user("a", part("image", "file:///etc/passwd"))}, 400, "below the server's media root"),
    "climbing": ({"messages": user("a", part("image", "file:///../../etc/passwd"))}, 400, "below the server's media"),
    "read option": ({"messages": user("a", part("volume", b"a", read={"rows": 1}))}, 400, "no option 'rows'"),
    "schema": ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "odd"}}}}, 400, "schema"),
    "two constraints": ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, 400, "exactly one"),
    "exploding regex": ({"structured_outputs": {"regex": "(a{1000}){1000}"}}, 400, "cannot be followed"),
    "many pictures": ({"messages": user("a", *[part("image", b"a")] * 9)}, 400, "at most 8"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_named_and_harm_nobody(server, predictor, media, case):
    fields, status, message = WRONG[case]
    body = {"model": "tiny", "max_tokens": 2, "messages": user("a"), **fields}
    reply = post(f"{server.address}/v1/chat/completions", json=body)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert message in error["message"]
    assert SECRET not in reply.text
    assert str(tempfile.gettempdir()) not in reply.text
    assert server.service.guard.open == 0


def test_large_uploads_are_refused(server, media):
    url = f"{server.address}/v1/chat/completions"
    large = post(url, content=b" " * (5 * 2**20))
    assert large.status_code == 413
    chunked = post(url, content=(b" " * 2**20 for _ in range(5)))
    assert chunked.status_code == 413
    stream = io.BytesIO()
    np.save(stream, np.full((10, 100, 100), -1000, dtype=np.int16))
    for kind, data, message in (
        ("volume", stream.getvalue(), "takes at most 60000"),
        ("image", _picture(300, 200), "takes at most 50000"),
        ("image", _picture(900, 900), "would decode to"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            ask(server, user("a", part(kind, data)))
    assert server.service.guard._held == 0


def _picture(height: int, width: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.zeros((height, width), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_not_json_and_unknown_paths(server):
    assert post(f"{server.address}/v1/chat/completions", content=b"{").status_code == 400
    assert get(f"{server.address}/nothing").json()["error"]["message"] == "Not Found."
    assert get(f"{server.address}/docs").status_code == 404


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_hangs_up_frees_its_place(server, media, monkeypatch, streaming):
    decoder = server.service.scheduler.decoder
    step = decoder.step
    monkeypatch.setattr(decoder, "step", lambda: (time.sleep(0.05), step())[1])  # the answer takes 20 seconds
    body = {"model": "tiny", "max_tokens": 400, "messages": user(QUESTION), "stream": streaming, "temperature": 1.0}
    body |= {"n": 8, "seed": 3}
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as connection:
        connection.sendall(head.encode() + content)
        wait_for(lambda: server.service.scheduler.running, what="the answer begins")
    server.wait_until_idle()
    assert not decoder.rows
    line = json.loads(server.service.settings.audit.read_text().splitlines()[-1])
    assert line["status"] == 499
    assert line["completion_tokens"] < 8 * 200  # its place was free long before its end


def test_a_killed_reader_loses_no_answer(server, predictor, media):
    ask(server, user(QUESTION, part("image", media / "a.png")))  # the reader has certainly started
    (reader,) = server.service.readers._all
    os.kill(reader.process.pid, signal.SIGKILL)
    wait_for(lambda: not reader.process.is_alive(), what="the reader ends")
    fresh = np.load(media / "a.npy").copy()
    fresh[2, 3, 4] = 77
    stream = io.BytesIO()
    np.save(stream, fresh)
    reply = ask(server, user(QUESTION, part("volume", stream.getvalue())))
    prompt = predictor.encode(question(QUESTION, 0, 1), [], [fresh])
    expected = predictor.generate([prompt], GenerationOptions(max_new_tokens=TOKENS))[0].token_ids
    assert reply.choices[0].token_ids == expected


def test_an_error_in_the_decoder_fails_one_request(server, monkeypatch, media):
    decoder = server.service.scheduler.decoder
    prepare = decoder._prepare

    def break_on_seven(row):
        if row.options.max_new_tokens == 7:
            raise RuntimeError(SECRET)
        return prepare(row)

    monkeypatch.setattr(decoder, "_prepare", break_on_seven)

    def send(length):
        body = {"model": "tiny", "max_tokens": length, "messages": user(QUESTION)}
        return post(f"{server.address}/v1/chat/completions", json=body)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(send, [6, 7, 8, 7, 9, 6]))
    assert [reply.status_code for reply in found] == [200, 500, 200, 500, 200, 200]
    assert SECRET not in found[1].text
    assert not decoder._texts
    monkeypatch.setattr(decoder, "step", lambda: 1 / 0)
    assert send(5).status_code == 500
    monkeypatch.undo()
    assert send(5).status_code == 200


def test_metrics_have_the_names_of_vllm(server):
    ask(server, user(QUESTION))
    text = get(f"{server.address}/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_sum", "e2e_request_latency_seconds_count", "request_queue_time_seconds_sum",
        "prompt_tokens_total", "generation_tokens_total", "prefix_cache_hits_total", "prefix_cache_queries_total",
        "mm_cache_hits_total", "mm_cache_queries_total",
    ):  # fmt: skip
        value = re.search(rf'^vllm:{name}{{[^}}]*model_name="tiny"[^}}]*}} (\S+)$', text, re.MULTILINE)
        assert value is not None, name
        assert float(value[1]) >= 0
    assert re.search(r'vllm:request_success_total{finished_reason="length",model_name="tiny"} [1-9]', text)


def test_tokenize_counts_visual_tokens(server, predictor, media):
    body = {"messages": user(QUESTION, part("image", media / "a.png"))}
    found = post(f"{server.address}/tokenize", json=body).json()
    expected = predictor.encode(question(QUESTION, 1, 0), [str(media / "a.png")], [])["input_ids"].tolist()
    assert (found["tokens"], found["count"]) == (expected, len(expected))
    plain = post(f"{server.address}/tokenize", json={"prompt": "a nodule"}).json()
    assert predictor.processor.tokenizer.decode(plain["tokens"]) == "a nodule"
    assert post(f"{server.address}/tokenize", json={}).status_code == 400


def text(words):
    return {"type": "text", "text": words}


#: Conversations of `tests/processing/test_conversation.py` as a client sends them; IMAGE stands for a picture.
CONVERSATIONS = {
    "text": [{"role": "user", "content": QUESTION}],
    "part": [{"role": "user", "content": [text(QUESTION)]}],
    "image first": [{"role": "user", "content": ["IMAGE", text("Is it?")]}],
    "text first": [{"role": "user", "content": [text("Is it?"), "IMAGE"]}],
    "several": [{"role": "user", "content": [text("a"), "IMAGE", "IMAGE", text("b")]}],
    "turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ["IMAGE", text("Is it?")]},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": [text("Why?")]},
    ],
}


def with_picture(turns, picture):
    def put(content):
        return content if isinstance(content, str) else [picture if one == "IMAGE" else one for one in content]

    return [turn | {"content": put(turn["content"])} for turn in turns]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_server_and_processor_give_one_prompt(server, predictor, media, name):
    turns = CONVERSATIONS[name]
    sent = {"messages": with_picture(turns, part("image", media / "a.png"))}
    found = post(f"{server.address}/tokenize", json=sent).json()["tokens"]
    ours = with_picture(turns, {"type": "image", "path": str(media / "a.png")})
    wanted = predictor.processor.apply_chat_template(ours, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert found == wanted["input_ids"][0].tolist()


def test_health_version_and_model(server):
    assert get(f"{server.address}/health").status_code == 200
    assert get(f"{server.address}/ready").status_code == 200
    assert "version" in get(f"{server.address}/version").json()
    model = server.client().models.list().data[0]
    assert (model.id, model.max_model_len, model.modalities) == ("tiny", 512, ["image", "text", "volume"])


def test_other_host_headers_are_refused(server):
    reply = get(f"{server.address}/v1/models", headers={"Host": "attacker.example"})
    assert reply.status_code == 400


def test_audit_lines_name_everything_but_the_content(server, media):
    messages = user(f"What about {SECRET}?", part("image", media / "a.png"))
    reply = ask(server, messages, stop=["Doe"], temperature=0.7, seed=3)
    path = server.service.settings.audit
    text = path.read_text()
    line = json.loads(text.splitlines()[-1])
    assert line["request"] == reply.id
    assert line["confidence"] == [pytest.approx(reply.choices[0].confidence)]
    assert line["parameters"]["temperature"] == 0.7
    assert line["parameters"]["stops"] == 1
    assert len(line["inputs"]["image"][0]) == 32
    assert line["geometry"] == server.service.facts.geometry
    assert len(line["model"]) == 64
    assert line["seconds"] >= line["first_token_seconds"] > 0
    answer = reply.choices[0].message.content
    assert not [word for word in ("Doe", "Jane", "1955-03", "pleural", "Which", answer or "?!") if word in text]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_are_asked_for_and_have_limits(model_folder, media, tmp_path, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: 1000.0)  # the requests of the test are all of one minute
    monkeypatch.setattr("medmvl.serving.server.guard.time", clock)
    (tmp_path / "keys").write_text("# clients\nward: 0123456789abcdef\nlab: fedcba9876543210\n")
    keys = read_keys(tmp_path / "keys")
    limits = Limits(per_key=1, waiting=2, per_minute=4)
    with live(model_folder, limits, keys=keys, audit=tmp_path / "audit.jsonl") as server:
        for wrong in ("none", "0123456789abcdeX"):
            with pytest.raises(openai.AuthenticationError):
                ask(server, user("a"), key=wrong)
        assert get(f"{server.address}/v1/models").status_code == 401
        assert get(f"{server.address}/metrics").status_code == 401
        assert get(f"{server.address}/health").status_code == 200
        held = [server.service.guard.place(client) for client in ("ward", "other")]
        held[0].__enter__()
        with pytest.raises(openai.RateLimitError) as refused:
            ask(server, user("a"), key="0123456789abcdef")
        assert refused.value.response.headers["retry-after"] == "1"
        held[1].__enter__()
        with pytest.raises(openai.InternalServerError) as full:
            ask(server, user("a"), key="fedcba9876543210")
        assert full.value.status_code == 503
        assert full.value.response.headers["retry-after"]
        for place in held:
            place.__exit__(None, None, None)
        for _ in range(3):
            ask(server, user("a"), key="fedcba9876543210")
        with pytest.raises(openai.RateLimitError, match="4 requests per minute"):
            ask(server, user("a"), key="fedcba9876543210")
        image = part("image", media / "a.png")
        ask(server, user("a", {**image, "uuid": "mine"}), key="0123456789abcdef")
        server.service.limits.__dict__["per_minute"] = 0
        named = {"type": "image_url", "image_url": None, "uuid": "mine"}
        with pytest.raises(openai.NotFoundError):
            ask(server, user("a", named), key="fedcba9876543210")
    clients = {json.loads(line)["key"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()}
    assert clients == {"", "ward", "lab"}


def test_late_requests_are_given_up(model_folder):
    with live(model_folder, Limits(seconds=0.2)) as server:
        with pytest.raises(openai.InternalServerError) as late:
            ask(server, user("a"), n=8, max_tokens=400, temperature=1.0)
        assert late.value.status_code == 504
        server.wait_until_idle()
        limits = server.service.limits.__dict__
        limits["seconds"] = PATIENCE  # a busy machine may need more than 0.2 seconds for two tokens
        assert len(ask(server, user("a"), max_tokens=2).choices[0].token_ids) == 2
        limits["upload_seconds"] = 0.3
        with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in slow.recv(1000)


def test_a_listed_host_is_fetched_and_no_other(model_folder, predictor, media):
    with _files(media) as (host, requests):
        with live(model_folder, url_hosts=(host,)) as server:
            reply = ask(server, user(QUESTION, part("image", f"http://{host}/a.png")))
            assert reply.choices[0].token_ids == tokens(predictor, QUESTION, [str(media / "a.png")])
            for path in ("moved", "missing"):
                with pytest.raises(openai.BadRequestError, match="could not be fetched"):
                    ask(server, user(QUESTION, part("image", f"http://{host}/{path}")))
            with pytest.raises(openai.BadRequestError, match="allow-list"):
                ask(server, user(QUESTION, part("image", f"http://user@{host}/a.png")))
        assert requests == ["/a.png", "/moved", "/missing"]


class _files:  # noqa: N801 - a context manager
    """A web server of a folder, which redirects `/moved`, and the paths that it was asked for."""

    def __init__(self, folder: Path) -> None:
        import http.server

        paths = self.paths = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=folder)

            def do_GET(self):
                paths.append(self.path)
                if self.path == "/moved":
                    self.send_response(302)
                    self.send_header("Location", "/b.png")
                    self.end_headers()
                else:
                    super().do_GET()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return f"127.0.0.1:{self._server.server_port}", self.paths

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def test_other_addresses_need_a_key_or_a_second_word(tmp_path):
    with pytest.raises(RecipeError, match="--without-key"):
        ServerSettings("a", host="0.0.0.0")
    ServerSettings("a", host="0.0.0.0", without_key=True)
    ServerSettings("a", host="0.0.0.0", keys={"0123456789abcdef": "ward"})
    for host in ("127.0.0.1", "::1", "localhost"):
        ServerSettings("a", host=host)
    for text in ("", "ward 0123456789abcdef", "ward: short", "a: 0123456789abcdef\nb: 0123456789abcdef"):
        (tmp_path / "keys").write_text(text)
        with pytest.raises(RecipeError):
            read_keys(tmp_path / "keys")


def test_limits_are_set_by_name():
    assert limits_from(["waiting=3", "seconds=1.5"]) == Limits(waiting=3, seconds=1.5)
    for wrong in ("waitin=3", "waiting=a", "waiting=0"):
        with pytest.raises(RecipeError):
            limits_from([wrong])


def test_uploads_leave_no_file_and_no_word(server, media):
    for kind, name in (("image", "b.png"), ("volume", "b.npy")):
        ask(server, user(f"What of {SECRET}?", part(kind, media / name)))
    server.wait_until_idle()
    processes = server.service.readers.process_ids  # other servers' readers come and go beside them
    assert processes
    assert not [path for one in processes for path in Path(tempfile.gettempdir()).glob(f"reader-{one}-*")]
    assert "Doe" not in get(f"{server.address}/metrics").text
    assert data_uri(b"a").startswith("data:")


def test_answers_that_are_not_sure_enough_are_withheld(server, media):
    messages = user(QUESTION, part("image", media / "a.png"))
    sure = ask(server, messages, logprobs=True).choices[0]
    kept = ask(server, messages, extra_body={"abstain_below": sure.confidence * 0.9}).choices[0]
    assert kept.message.content == sure.message.content
    below = {"extra_body": {"abstain_below": 1.0, "return_token_ids": True}, "logprobs": True}
    withheld = ask(server, messages, **below)
    choice = withheld.choices[0]
    assert choice.message.content == ABSTENTION
    assert choice.abstained is True
    assert choice.confidence == pytest.approx(sure.confidence)
    assert choice.logprobs is None
    assert "token_ids" not in choice.model_dump()
    with server.client() as client:
        chunks = list(
            client.chat.completions.create(model="tiny", messages=messages, max_tokens=TOKENS, stream=True, **below)
        )
    pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert [piece.delta.content for piece in pieces if piece.delta.content] == [ABSTENTION]
    assert pieces[-1].abstained is True
    assert all(piece.logprobs is None for piece in pieces)


@pytest.mark.parametrize(
    ("value", "message"), [("stored", "stores no threshold"), (1.5, "abstain_below"), ("x", "abstain_below")]
)
def test_a_wrong_threshold_is_a_bad_request(server, value, message):
    with pytest.raises(openai.BadRequestError, match=message):
        ask(server, user(QUESTION), extra_body={"abstain_below": value})
