"""`inspect` says what is in a folder without loading it; the command line ends mistakes with one line and status 2."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tests.models import zoo
from tests.parity.sets import HERE
from transformers import Qwen2Config

from medmvl.checkpoints import export_llava, inspect_folder, print_inspection
from medmvl.checkpoints.model_facts import completed_facts, stored_facts
from medmvl.checkpoints.vllm_cpu import vllm_cpu_note
from medmvl.cli import main as cli
from medmvl.errors import CheckpointError, ModelError
from medmvl.inference import Predictor
from medmvl.models import MedMVLConfig, MedMVLForConditionalGeneration, parts
from medmvl.models.connectors import POOLINGS
from medmvl.models.encoders import ENCODERS, encoder_spec
from medmvl.models.weight_writer import expected_tensors
from medmvl.processing.templates import load_template, template_names


def test_every_parameter_is_counted_in_its_part(converted: Callable[[str], Path]) -> None:
    found = inspect_folder(converted("v2"))
    model = MedMVLForConditionalGeneration.from_pretrained(converted("v2"))
    assert set(found.parts) == {"llm", "volume_encoder", "volume_connector"} == set(parts(model))
    for name, part in parts(model).items():
        assert found.parts[name].values == sum(parameter.numel() for parameter in part.parameters())
        assert set(found.parts[name].dtypes) == {"BF16"}


def test_the_facts_a_reader_looks_for(converted: Callable[[str], Path]) -> None:
    facts = inspect_folder(converted("v2")).facts
    assert facts["geometry"].startswith("medm-vl-ct v1 (")
    assert "(32, 64, 64)" in facts["geometry"]
    assert "slicewise at 32x64x64 -> 32x4x4 -> attention -> 4x4 (16 tokens)" in facts["volume tower"]
    assert facts["template"] == "qwen2"
    assert facts["converted from"] == "MedM-VL reference, current layout"


#: The encoder whose grid is found by running it: its config needs transformers.
RUN_FOR_ITS_GRID = "transformers"


def facts_both_ways(**settings: Any) -> tuple[dict[str, str] | None, dict[str, str]]:
    """Return the lines of a saved config as it is stored, and as its class completes it."""
    config = MedMVLConfig(**settings)
    names = expected_tensors(config)
    raw = json.loads(config.to_json_string())
    stored = stored_facts(raw, names)
    return stored and stored.lines(), completed_facts(raw, names).lines()


@pytest.mark.parametrize("key", zoo.ENCODERS)
def test_stored_config_says_the_same_of_each_encoder_without_torch(key: str) -> None:
    settings = zoo.encoder(key)
    towers = {ENCODERS[settings["name"]].modality: {"encoder": settings}}
    stored, completed = facts_both_ways(text_config=zoo.llm("llama"), towers=towers)
    needs_torch = settings["name"] == RUN_FOR_ITS_GRID or key == "siglip2:naflex"
    assert stored == (None if needs_torch else completed)


@pytest.mark.parametrize("size", [None, (32, 32), (97, 130), (64, 223)])
@pytest.mark.parametrize("downsampled", [False, True])
@pytest.mark.parametrize("layer", ["basic", "bottleneck"])
def test_stored_grid_of_a_resnet_is_that_of_its_features(size, downsampled: bool, layer: str) -> None:
    settings = zoo.encoder("resnet")
    vision = settings["vision_config"] | {"downsample_in_first_stage": downsampled, "layer_type": layer}
    settings |= {"vision_config": vision, "size": size}
    stored, completed = facts_both_ways(text_config=zoo.llm("llama"), towers={"image": {"encoder": settings}})
    assert stored == completed


@pytest.mark.parametrize("kind", ["convnext", "convnextv2"])
@pytest.mark.parametrize("size", [None, (32, 40), (97, 130)])
def test_stored_grid_of_a_convnext_is_that_of_its_features(size, kind: str) -> None:
    settings = zoo.encoder(kind) | {"size": size}
    stored, completed = facts_both_ways(text_config=zoo.llm("llama"), towers={"image": {"encoder": settings}})
    assert stored == completed


@pytest.mark.parametrize("encoder", ["siglip", "clip:all", "slicewise", "slicewise:cls", "vit3d"])
@pytest.mark.parametrize("pooling", zoo.POOLINGS)
def test_stored_config_says_the_same_of_each_pooling_without_torch(encoder: str, pooling: str) -> None:
    spec = encoder_spec(zoo.encoder(encoder))
    settings = {"encoder": spec.to_dict(), "connector": {"pooling": zoo.pooling(pooling)}}
    try:
        POOLINGS[pooling].model_validate(zoo.pooling(pooling)).output_grid(spec.grid())
    except ModelError:
        pytest.skip("the pooling does not fit the encoder's grid")
    stored, completed = facts_both_ways(text_config=zoo.llm("llama"), towers={spec.modality: settings})
    assert stored == completed


@pytest.mark.parametrize("family", [*zoo.LLMS, *zoo.OTHER_LLMS])
def test_stored_config_says_the_same_of_each_llm_without_torch(family: str) -> None:
    stored, completed = facts_both_ways(text_config=zoo.llm(family))
    assert stored == completed


def test_llm_with_other_names_of_its_settings_is_described_by_its_class() -> None:
    stored, completed = facts_both_ways(text_config={"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2})
    assert stored is None
    assert completed["LLM"].startswith("gpt2, width 16, 2 layers")


def test_config_without_default_settings_is_completed(converted: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(converted("v1"), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    for tower in config["towers"].values():
        del tower["connector"]["pooling"], tower["encoder"]["select_feature"]
    file.write_text(json.dumps(config))
    assert inspect_folder(tmp_path / "model").facts == inspect_folder(converted("v1")).facts


def test_impossible_tower_is_refused(converted: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(converted("v1"), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["towers"]["image"]["connector"]["pooling"] = {"name": "spatial", "factor": 99}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not fit the grid"):
        inspect_folder(tmp_path / "model")


def test_inspection_of_our_folders_imports_no_torch(converted: Callable[[str], Path]) -> None:
    code = (
        "import sys; from medmvl.cli.main import main; sys.argv = ['medmvl', 'checkpoint', 'inspect', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'pydicom'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(converted("v2"))], capture_output=True, text=True, check=True
    )
    assert "template: qwen2" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_template_is_named_or_quoted(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    for name in template_names():
        (folder / "chat_template.jinja").write_text(load_template(name))
        assert inspect_folder(folder).facts["template"] == name
    (folder / "chat_template.jinja").write_text("\n{{ messages }}\n{{ bos_token }}")
    assert inspect_folder(folder).facts["template"] == "its own, {{ messages }}"
    (folder / "chat_template.jinja").write_text("")
    assert inspect_folder(folder).facts["template"] == "its own, empty"


def test_head_size_that_vllm_on_a_cpu_lacks_is_noted(model_folder: Path) -> None:
    assert "have size 8" in inspect_folder(model_folder).facts["vLLM on a CPU"]
    assert vllm_cpu_note(Qwen2Config(hidden_size=64, num_attention_heads=2)) is None
    assert vllm_cpu_note(Qwen2Config(hidden_size=64, num_attention_heads=2, head_dim=48)) is not None


def test_a_foreign_folder_shows_the_names_to_resolve() -> None:
    found = inspect_folder(HERE / "checkpoints/v5_clip_mlp_llama3")
    assert "convert" in found.layout
    assert found.facts["lvlm_llm_name_or_path"] == "pretrained/llama3-tiny"


def test_it_prints(converted: Callable[[str], Path]) -> None:
    console = Console(record=True, width=160)
    print_inspection(inspect_folder(converted("v3")), console)
    text = console.export_text()
    assert "volume_encoder" in text
    assert "medm-vl-ct-medmclip" in text


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no config.json"):
        inspect_folder(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["medmvl", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(HERE / "checkpoints/v1_siglip_mlp_qwen2"), tmp_path
    qwen = f"pretrained/qwen2-tiny={HERE / 'pretrained/qwen2-tiny'}"
    assert run(monkeypatch, "checkpoint", "convert", source, str(out / "ours"), "--resolve", qwen) == 0
    assert "pretrained/qwen2-tiny: given" in capsys.readouterr().out
    assert run(monkeypatch, "checkpoint", "inspect", str(out / "ours")) == 0
    assert run(monkeypatch, "checkpoint", "export", str(out / "ours"), str(out / "llava"), "--format", "llava-hf") == 0
    assert (out / "llava" / "config.json").is_file()
    assert run(monkeypatch, "checkpoint", "export", str(out / "ours"), str(out / "gguf"), "--format", "gguf") == 0
    assert sorted(path.name for path in (out / "gguf").iterdir()) == ["mmproj.gguf", "model.gguf"]
    capsys.readouterr()
    assert run(monkeypatch, "checkpoint", "export", str(out / "ours"), str(out / "x"), "--format", "llava") == 2
    assert "Did you mean 'llava-hf'" in capsys.readouterr().err
    assert run(monkeypatch, "checkpoint", "merge", str(out / "ours"), str(out / "y")) == 2
    assert run(monkeypatch, "checkpoint", "convert", str(out / "ours"), str(out / "z")) == 2
    message = capsys.readouterr().err
    assert "already" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "file", ["processor_config.json", "chat_template.jinja", "tokenizer.json", "model.safetensors"]
)
def test_a_folder_that_lacks_a_file_is_not_loaded_by_halves(
    converted: Callable[[str], Path], tmp_path: Path, file: str
) -> None:
    shutil.copytree(converted("v1"), tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    for use in (
        lambda: Predictor.from_pretrained(tmp_path / "model"),
        lambda: export_llava(tmp_path / "model", tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError, match=file):
            use()
    assert not (tmp_path / "out").exists()


def test_a_config_whose_sizes_are_not_those_of_the_weights(converted: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(converted("v1"), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["intermediate_size"] += 8
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="another shape"):
        Predictor.from_pretrained(tmp_path / "model")


def test_in_full_precision_every_weight_is_the_stored_one(converted: Callable[[str], Path]) -> None:
    """v2 is stored as bfloat16; each file is let go when its last weight is converted."""
    stored = MedMVLForConditionalGeneration.from_pretrained(converted("v2"))
    loaded = MedMVLForConditionalGeneration.from_pretrained(converted("v2"), dtype=torch.float32)
    assert {p.dtype for p in stored.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in loaded.parameters()} == {torch.float32} == {loaded.dtype}
    assert loaded.config.dtype == loaded.config.text_config.dtype == torch.float32
    assert all(torch.equal(p, q.float()) for p, q in zip(loaded.parameters(), stored.parameters(), strict=True))


def test_foreign_names_are_printed_as_they_are(converted: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(converted("v1"), tmp_path / "model")
    save_file({"[/bold][link=x]y.\x1b[31mweight": torch.zeros(2)}, tmp_path / "model" / "model.safetensors")
    console = Console(record=True, width=160)
    print_inspection(inspect_folder(tmp_path / "model"), console)
    text = console.export_text()
    assert "[/bold][link=x]y" in text
    assert "\x1b" not in text


def test_head_in_the_weights_counts_as_untied(converted: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(converted("v1"), tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights.pop("language_model.lm_head.weight", None)
    for head, expected in (({}, "head tied"), ({"language_model.lm_head.weight": torch.ones(2, 2)}, "head untied")):
        save_file({**weights, **head}, tmp_path / "model" / "model.safetensors")
        assert inspect_folder(tmp_path / "model").facts["LLM"].endswith(expected)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"text_config": {"num_hidden_layers": 65536}}, "num_hidden_layers = 65536; at most 2000 are built"),
        ("config.json", {"text_config": {"hidden_size": 65536}}, "another shape"),
        ("generation_config.json", {"temperature": "warm"}, "temperature in generation_config.json must be float"),
        ("generation_config.json", {"num_beams": 1e308}, "num_beams in generation_config.json must be int"),
        ("generation_config.json", {"bad_words_ids": [["x"]]}, "bad_words_ids in generation_config.json is not supported"),
        ("generation_config.json", {"eos_token_id": 2**63}, "eos_token_id must be a token id"),
    ],
)  # fmt: skip
def test_edited_settings_are_refused_before_anything_is_built(
    converted: Callable[[str], Path], tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(converted("v1"), tmp_path / "edited")
    path = tmp_path / "edited" / file
    settings = json.loads(path.read_text())
    for key, value in change.items():
        settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="edited.*" + re.escape(message)):
        Predictor.from_pretrained(tmp_path / "edited")


def test_layers_that_the_weights_do_not_have_are_refused_before_they_are_built(model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["towers"]["image"]["encoder"]["vision_config"]["num_hidden_layers"] = 10**7
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="num_hidden_layers = 10000000"):
        inspect_folder(folder)
