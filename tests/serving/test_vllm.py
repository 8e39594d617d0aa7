"""`vllm serve` with the plugin: answers and log-probabilities are the Predictor's, offline and over HTTP."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from medmvl import Predictor, read_volume
from medmvl.checkpoints import export_llm
from medmvl.checkpoints.vllm_cpu import HEAD_SIZES
from medmvl.data.read_options import ReadOptions, with_reading
from medmvl.data.sample import Message, Sample
from medmvl.inference.decoding.row import Row, RowOptions
from serving.live import live, part, user
from serving.vllm_model import IMAGE_QUESTION, VOLUME_QUESTION, Learned, learn
from serving.vllm_process import VARIABLE, answer_offline, client, python, vllm_server
from tiny import make_model

pytestmark = [
    pytest.mark.slow,  # trains a model and starts vLLM three times
    pytest.mark.skipif(not python(), reason=f"{VARIABLE} is not set; see tools/vllm_environment.py"),
]

TOKENS, TOLERANCE = 16, 1e-4


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Learned:
    return learn(tmp_path_factory.mktemp("learned"))


@pytest.fixture(scope="module")
def predictor(learned) -> Predictor:
    return Predictor.from_pretrained(learned.folder, device="cpu")


@pytest.fixture(scope="module")
def address(learned, tmp_path_factory) -> Iterator[str]:
    with vllm_server(learned.folder, tmp_path_factory.mktemp("vllm"), "--trust-request-mm-kwargs") as running:
        yield running


def question(text: str, images: list[Path] = [], volumes: list[Path] = []) -> dict[str, Any]:  # noqa: B006
    return {"text": text, "images": [str(path) for path in images], "volumes": [str(path) for path in volumes]}


def expected(predictor: Predictor, asked: dict[str, Any]) -> Row:
    """Return the Predictor's own row of a question whose text holds its placeholders."""
    sample = Sample("x", (Message("user", asked["text"]),))
    row = Row(predictor.encode(sample, asked["images"], asked["volumes"]), RowOptions(TOKENS))
    decoder = predictor.decoder()
    decoder.add([row])
    while decoder.rows:
        decoder.step()
    return row


def check(row: Row, token_ids: list[int], logprobs: list[float]) -> float:
    """Compare an answer with the Predictor's; returns the largest difference of a log-probability."""
    assert token_ids == row.token_ids
    difference = float(np.abs(np.subtract(logprobs, row.logprobs)).max())
    assert difference < TOLERANCE
    return difference


def questions(learned: Learned) -> list[dict[str, Any]]:
    """Return a question about every image and volume, and such about several."""
    images, volumes = learned.images, learned.volumes
    asked = [question(f"<image>\n{IMAGE_QUESTION}", [image]) for image in images]
    asked += [question(f"<image3d>\n{VOLUME_QUESTION}", [], [volume]) for volume in volumes]
    for i in range(0, 8, 2):
        asked += [
            question(f"<image>\n<image3d>\n{VOLUME_QUESTION}", images[i : i + 1], volumes[i : i + 1]),
            question(f"<image3d>\nand\n<image>\n{IMAGE_QUESTION}", images[i : i + 1], volumes[i + 1 : i + 2]),
            question(
                f"<image>\n<image>\n<image3d>\n<image3d>\n{IMAGE_QUESTION}", images[i : i + 2], volumes[i : i + 2]
            ),
        ]
    return asked


def test_offline_answers_are_the_predictors(learned, predictor, tmp_path):
    asked = questions(learned)
    prompts = [
        predictor.processor.apply_chat_template([{"role": "user", "content": one["text"]}], add_generation_prompt=True)
        for one in asked
    ]
    job = {"model": str(learned.folder), "max_tokens": TOKENS}
    job["questions"] = [{**one, "prompt": prompt} for one, prompt in zip(asked, prompts, strict=True)]
    known, differences = {"images": 0, "volumes": 0}, []
    for one, found in zip(asked, answer_offline(job, tmp_path), strict=True):
        row = expected(predictor, one)
        assert found["prompt_ids"] == row.encoded["input_ids"].tolist()
        differences.append(check(row, found["token_ids"], found["logprobs"]))
        text = predictor.decoder().end.decode(row.token_ids)
        for kind in known:
            known[kind] += len(one["images"]) + len(one["volumes"]) == 1 and text in [
                learned.answers[Path(path)] for path in one[kind]
            ]
    assert known["images"] >= 40  # else equal answers would say little
    assert known["volumes"] >= 30
    print(f"{len(differences)} answers, log-probabilities differ by at most {max(differences):.1e}; learned: {known}")  # noqa: T201


def nan_volume() -> bytes:
    """Return an npz file with voxels that are no numbers."""
    stream = io.BytesIO()
    np.savez(stream, np.full((6, 20, 20), np.nan, dtype=np.float32))
    return stream.getvalue()


def ask(address: str, messages: list[dict[str, Any]], **body: Any) -> Any:
    """Return the only choice of a greedy answer."""
    with client(address) as asking:
        return asking.chat.completions.create(
            model="tiny", messages=messages, max_tokens=TOKENS, temperature=0, logprobs=True,
            extra_body={"return_token_ids": True, **body},
        ).choices[0]  # fmt: skip


def check_choice(row: Row, choice: Any) -> None:
    check(row, choice.token_ids, [token.logprob for token in choice.logprobs.content])


def test_answers_over_http_are_the_predictors(learned, predictor, address):
    for image in learned.images[:12]:
        found = ask(address, user(IMAGE_QUESTION, part("image", image)))
        check_choice(expected(predictor, question(f"<image>\n{IMAGE_QUESTION}", [image])), found)
    for volume in learned.volumes[:12]:
        found = ask(address, user(VOLUME_QUESTION, part("video", volume)))
        check_choice(expected(predictor, question(f"<image3d>\n{VOLUME_QUESTION}", [], [volume])), found)
    text = [{"role": "user", "content": "Hello."}]
    check_choice(expected(predictor, question("Hello.")), ask(address, text))


def test_order_of_parts_is_kept_over_http(learned, predictor, address):
    images, volumes = learned.images, learned.volumes
    say = [{"type": "text", "text": text} for text in ("Before:", "After:", IMAGE_QUESTION)]
    parts = [say[0], part("image", images[0]), part("video", volumes[0])]
    parts += [say[1], part("image", images[1]), part("video", volumes[1]), say[2]]
    found = ask(address, [{"role": "user", "content": parts}])
    plain = f"Before:\n<image>\n<image3d>\nAfter:\n<image>\n<image3d>\n{IMAGE_QUESTION}"
    check_choice(expected(predictor, question(plain, images[:2], volumes[:2])), found)


def test_one_uuid_does_not_confuse_two_studies(learned, predictor, address):
    for volume in learned.volumes[20:22]:
        found = ask(address, user(VOLUME_QUESTION, {**part("video", volume), "uuid": "study"}))
        check_choice(expected(predictor, question(f"<image3d>\n{VOLUME_QUESTION}", [], [volume])), found)


def test_array_is_read_as_the_request_says(learned, predictor, address, tmp_path):
    inside = read_volume(learned.volumes[3]).array[1:-1, 1:-1, 1:-1]  # without air, its unit cannot be seen
    np.savez(tmp_path / "inside.npz", inside)
    asking = user(VOLUME_QUESTION, part("video", tmp_path / "inside.npz"))
    with pytest.raises(openai.BadRequestError, match="Hounsfield"):
        ask(address, asking)
    read = {"units": "HU", "spacing": [2.0, 1.0, 1.0]}
    found = ask(address, asking, media_io_kwargs={"video": read})
    volumes = with_reading([str(tmp_path / "inside.npz")], ReadOptions.parse(read))
    check_choice(expected(predictor, question(f"<image3d>\n{VOLUME_QUESTION}") | {"volumes": volumes}), found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([part("video", b"\x00garbage" * 9), {"type": "text", "text": "?"}], "The volume cannot be used"),
        ([part("video", nan_volume()), {"type": "text", "text": "?"}], "The volume cannot be used"),
        ([part("image", b"\x00garbage" * 9), {"type": "text", "text": "?"}], "image"),
        ([{"type": "video_url", "video_url": None, "uuid": "study"}, {"type": "text", "text": "?"}], "has no data"),
        ([{"type": "text", "text": "<image3d> What is it?"}], "1 <image3d> placeholder"),
    ],
)
def test_wrong_request_is_refused_and_hurts_nobody(learned, predictor, address, content, message):
    with pytest.raises(openai.BadRequestError, match=message) as raised:
        ask(address, [{"role": "user", "content": content}])
    assert "/tmp" not in str(raised.value)
    found = ask(address, user(IMAGE_QUESTION, part("image", learned.images[0])))
    check_choice(expected(predictor, question(f"<image>\n{IMAGE_QUESTION}", learned.images[:1])), found)


def test_head_size_that_the_cpu_build_lacks_ends_the_start(tmp_path):
    model, processor = make_model()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    job = {"model": str(tmp_path / "model"), "max_tokens": 1, "questions": []}
    with pytest.raises(AssertionError, match="attention heads have size 8, and vLLM's CPU build takes 32, 64"):
        answer_offline(job, tmp_path)


def test_backend_answers_are_the_predictors(learned, predictor, tmp_path):
    """`medmvl serve --backend` in front of vLLM that runs the exported LLM, and nothing of ours in vLLM."""
    export_llm(learned.folder, tmp_path / "llm")
    asked = [user(IMAGE_QUESTION, part("image", image)) for image in learned.images[:20]]
    asked += [user(VOLUME_QUESTION, part("volume", volume)) for volume in learned.volumes[:20]]
    plain = [question(f"<image>\n{IMAGE_QUESTION}", [image]) for image in learned.images[:20]]
    plain += [question(f"<image3d>\n{VOLUME_QUESTION}", [], [volume]) for volume in learned.volumes[:20]]
    asked.append(user("Compare.", part("image", learned.images[0]), part("volume", learned.volumes[0])))
    plain.append(question("<image>\n<image3d>\nCompare.", learned.images[:1], learned.volumes[:1]))
    with (
        vllm_server(tmp_path / "llm", tmp_path, "--enable-prompt-embeds", plugins="") as backend,
        live(learned.folder, backend=f"{backend}/v1") as running,
        ThreadPoolExecutor(8) as threads,
    ):
        found = list(threads.map(lambda messages: ask(running.address, messages), asked))
    for one, choice in zip(plain, found, strict=True):
        check_choice(expected(predictor, one), choice)


def test_noted_head_sizes_are_those_of_the_cpu_build():
    code = (
        "from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend as b; print(b.get_supported_head_sizes())"
    )
    done = subprocess.run([str(python()), "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == list(HEAD_SIZES)
