"""Exported GGUF files under llama.cpp itself (package xllamacpp): the prompt ids, end tokens and answers are ours."""

from __future__ import annotations

import base64
import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from tests.checkpoints.test_export_gguf import gemma

from medmvl.checkpoints import export_gguf
from medmvl.data.formats import write_records
from medmvl.data.sample import IMAGE_PLACEHOLDER, Message, Sample
from medmvl.inference import GenerationOptions, Predictor
from medmvl.processing import MedMVLProcessor
from medmvl.processing.chat import render
from medmvl.training.run import train
from tiny import SIGLIP

pytestmark = pytest.mark.slow  # a server for each model and template
pytest.importorskip("gguf")
xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")

#: Conversations: (role, parts of the content), "I" for an image.
CONVERSATIONS: dict[str, list[tuple[str, list[str] | str]]] = {
    "image first": [("user", ["I", "Is there a nodule?"])],
    "text first": [("user", ["Is there a nodule?", "I"])],
    "two images": [("user", ["I", "I", "Compare."])],
    "images between texts": [("user", ["Before:", "I", "After:", "I", "What changed?"])],
    "second round": [("user", ["I", "What is it?"]), ("assistant", "A lung."), ("user", ["Which side?"])],
    "image in the second round": [("user", ["Hello."]), ("assistant", "Yes?"), ("user", ["I", "What is it?"])],
    "no image": [("user", ["What is a lung?"])],
    "system": [("system", "Be brief."), ("user", ["I", "Is there a nodule?"])],
    "system without image": [("system", "Be brief."), ("user", ["Is there a nodule?"])],
    "other scripts": [("user", ["I", "肺に結節がありますか？ Есть ли узел? 12 мм"])],
    "white space": [("user", ["I", "  Is   there\n\n a nodule? "])],
}
#: Variants of the parity set (LLM and tokenizer) with templates; None: the one of the checkpoint.
PAIRS = [
    *((variant, None) for variant in ("v1", "v5", "v6a", "v6b", "gemma")),
    *(("v1", name) for name in ("chatml", "plain", "qwen2.5-chat", "phi2-qa", "llama")),
    ("v5", "llama3-chat"),
    ("v6b", "phi3-chat"),
    ("v6b", "llama2-chat"),
    ("gemma", "gemma-chat"),
]


class LlamaServer:
    """llama.cpp's server for an exported folder.

    Attributes:
        marks_every_word: whether the export noted that words behind special tokens differ.
    """

    marks_every_word = False

    def __init__(self, folder: Path) -> None:
        settings = xllamacpp.CommonParams()
        settings.model.path, settings.mmproj.path = str(folder / "model.gguf"), str(folder / "mmproj.gguf")
        settings.n_ctx, settings.n_parallel, settings.port, settings.n_gpu_layers = 2048, 1, 0, 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.verbosity, settings.warmup, settings.use_jinja, settings.fit_params = 0, False, True, False
        self._server = xllamacpp.Server(settings)

    def post(self, path: str, **body: object) -> dict[str, Any]:
        address = f"{self._server.listening_address}{path}"
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                found: dict[str, Any] = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        return found

    def ask(self, messages: list[dict[str, Any]], **options: object) -> dict[str, Any]:
        """Return the greedy answer to a chat."""
        return self.post("/v1/chat/completions", messages=messages, temperature=0, **options)

    def pieces(self, messages: list[dict[str, Any]]) -> list[list[int]]:
        """Return the ids of the prompt's pieces between its images, as llama.cpp's multimodal tokenizer makes them."""
        prompt = self.post("/apply-template", messages=messages)["prompt"]
        texts = re.split(r"<__media_\w*__>", prompt)
        return [
            self.post("/tokenize", content=text, add_special=number == 0, parse_special=True)["tokens"]
            for number, text in enumerate(texts)
        ]


@contextmanager
def serving(source: Path, target: Path) -> Iterator[LlamaServer]:
    """Export a checkpoint and serve it."""
    notes = export_gguf(source, target).notes
    server = LlamaServer(target)
    server.marks_every_word = any("behind every special token" in note for note in notes)
    yield server


def picture(seed: int, side: int) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def content(part: str, image: PILImage.Image) -> dict[str, Any]:
    """Return a part of a chat's content as OpenAI's clients send it."""
    if part != "I":
        return {"type": "text", "text": part}
    file = io.BytesIO()
    image.save(file, "png")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"},
    }


def chat(turns: list[tuple[str, list[str] | str]], image: PILImage.Image) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": parts if isinstance(parts, str) else [content(part, image) for part in parts]}
        for role, parts in turns
    ]


def as_text(parts: list[str] | str) -> str:
    return parts if isinstance(parts, str) else "\n".join(IMAGE_PLACEHOLDER if part == "I" else part for part in parts)


@pytest.fixture(scope="module")
def source(converted: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a variant, by name."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name == "gemma" and name not in folders:
            folders[name] = gemma(tmp_path_factory.mktemp("gemma"))
        return folders.get(name) or converted(name)

    return get


@pytest.mark.parametrize(("variant", "template"), PAIRS)
def test_prompt_ids_and_end_tokens_are_ours(
    source: Callable[[str], Path], tmp_path: Path, variant: str, template: str | None
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in source(variant).iterdir():
        (folder / file.name).symlink_to(file)
    processor = MedMVLProcessor.from_pretrained(folder)
    if template is not None:
        (folder / "chat_template.jinja").unlink()
        processor.with_template(template)
        (folder / "chat_template.jinja").write_text(processor.chat_template)
    placeholder = processor.tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    image, compared = picture(0, 32), 0
    with serving(folder, tmp_path / "gguf") as server:
        for name, turns in CONVERSATIONS.items():
            rendered = render([Message(role, as_text(parts)) for role, parts in turns], processor.chat_template, processor.tokenizer, ask=True)  # fmt: skip
            images = sum(parts.count("I") for _, parts in turns if not isinstance(parts, str))
            if rendered.text.count(IMAGE_PLACEHOLDER) != images:
                continue  # the template drops an image, and our processor refuses such a conversation
            inside = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
            behind = rendered.text.removeprefix(processor.tokenizer.bos_token or "")
            if server.marks_every_word and any(token in behind for token in inside if token != IMAGE_PLACEHOLDER):
                continue  # as the export's note says
            ids = processor.tokenize(rendered)[0]
            ours: list[list[int]] = [[]]
            for token in ids:
                if token == placeholder:
                    ours.append([])
                else:
                    ours[-1].append(token)
            theirs = server.pieces(chat(turns, image))
            assert [piece for piece in theirs if piece] == [piece for piece in ours if piece], name
            asked = server.ask(chat(turns, image), max_tokens=1)
            assert asked["usage"]["prompt_tokens"] == len(ids), name
            compared += 1
        assert compared >= 5 or server.marks_every_word
        for token in processor.stop_token_ids:
            forced = server.ask(chat(CONVERSATIONS["no image"], image), max_tokens=8, logit_bias=[[token, 1000]])
            assert forced["choices"][0]["finish_reason"] == "stop", token
            assert not forced["choices"][0]["message"]["content"]


def test_greedy_answers_are_ours(tmp_path: Path) -> None:
    """A SigLIP model that has learned 48 records by heart; each is asked in both engines."""
    words = ["nodule", "effusion", "normal", "mass", "edema", "fracture", "pneumothorax", "cyst"]
    rows = []
    for number in range(48):
        picture(number, 32).save(tmp_path / f"{number}.png")
        answer = f"{words[number % 8]} and {words[number // 8]}."
        turns = [{"from": "human", "value": "<image>\nWhat is seen?"}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"r{number}", "image": [f"{number}.png"], "conversations": turns})
    write_records(tmp_path / "d.jsonl", rows)
    llm = {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    llm |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    everything = {"llm": "full", "image_encoder": "full", "image_connector": "full"}
    stage = {"name": "s", "train": everything, "lr": 3e-3, "batch_size": 16, "max_steps": 250, "data": ["d"]}
    recipe = {
        "name": "r",
        "seed": 0,
        "data_root": str(tmp_path),
        "model": {
            "llm": {"config": llm, "tokenizer": {"vocab_size": 400}},
            "image": {"encoder": {"name": "siglip", "vision_config": SIGLIP}},
        },
        "data": {"d": {"path": "d.jsonl"}},
        "stages": [stage],
        "run": {"progress": False, "device": "cpu"},
    }
    folder = train(recipe, tmp_path / "run")
    predictor = Predictor.from_pretrained(folder, device="cpu")
    samples = [Sample("s", (Message("user", "<image>\nWhat is seen?"),)) for _ in rows]
    encoded = [
        predictor.processor.encode(sample, train=False, images=[str(tmp_path / f"{number}.png")])
        for number, sample in enumerate(samples)
    ]
    ours = predictor.generate(encoded, GenerationOptions(max_new_tokens=12))
    learned = sum(row["conversations"][1]["value"] == answer.text for row, answer in zip(rows, ours, strict=True))
    assert learned >= 40  # else equal answers would say little
    with serving(folder, tmp_path / "gguf") as server:
        for number, expected in enumerate(ours):
            messages = chat([("user", ["I", "What is seen?"])], PILImage.open(tmp_path / f"{number}.png"))
            found = server.ask(messages, max_tokens=12)["choices"][0]
            assert found["message"]["content"] == expected.text, number
            assert found["finish_reason"] == "stop"
