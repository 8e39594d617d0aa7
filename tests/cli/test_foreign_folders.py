"""Tests that no entry point runs code that a model folder brings, asks about it, or applies adapter files in it."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2Config, SiglipVisionConfig, SiglipVisionModel

from medmvl.cli import main as command_line
from medmvl.errors import CheckpointError
from medmvl.files import read_json, write_json
from medmvl.pretrained import refuse_adapters
from medmvl.processing import ImageProcessor
from tiny import LLM, SIGLIP, make_tokenizer

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def medmvl(capsys, monkeypatch) -> Run:
    """Run `medmvl ARGUMENTS` with a "y" on standard input; return status and stderr."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
        monkeypatch.setattr(sys, "argv", ["medmvl", *map(str, arguments)])
        status = 0
        try:
            command_line.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, capsys.readouterr().err

    return run


@pytest.fixture
def mark(tmp_path) -> Path:
    """The file that the folder's code would write."""
    return tmp_path / "code-ran"


def set_trap(folder: Path, mark: Path) -> Path:
    """Make every config of a folder point at code that writes `mark`."""
    (folder / "trap.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Trap: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoImageProcessor")
    trap = dict.fromkeys(names, "trap.Trap")
    for file in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        path = folder / file
        settings = read_json(path) if path.is_file() else {}
        settings["auto_map"] = {**trap, "AutoTokenizer": ["trap.Trap", "trap.Trap"]}
        if file == "tokenizer_config.json":
            settings["tokenizer_class"] = "TrapTokenizer"
        if file == "config.json" and isinstance(settings.get("text_config"), dict):
            settings["text_config"] |= {"auto_map": trap}
        write_json(path, settings)
    return folder


@pytest.fixture
def trapped(model_folder, tmp_path, mark) -> Path:
    """A checkpoint of ours with a trap."""
    shutil.copytree(model_folder, tmp_path / "trapped")
    return set_trap(tmp_path / "trapped", mark)


@pytest.fixture
def trapped_parts(tmp_path, mark) -> dict[str, Path]:
    """Pretrained parts of transformers with traps."""
    folders = {"llm": tmp_path / "llm", "encoder": tmp_path / "encoder"}
    tokenizer = make_tokenizer()
    AutoModelForCausalLM.from_config(Qwen2Config(**{**LLM, "vocab_size": len(tokenizer)})).save_pretrained(
        folders["llm"]
    )
    tokenizer.save_pretrained(folders["llm"])
    SiglipVisionModel(SiglipVisionConfig(**{k: v for k, v in SIGLIP.items() if k != "model_type"})).save_pretrained(
        folders["encoder"]
    )
    write_json(folders["encoder"] / "preprocessor_config.json", ImageProcessor.for_size(32, 32).settings)
    return {name: set_trap(folder, mark) for name, folder in folders.items()}


@pytest.fixture
def data(tmp_path, media) -> Path:
    rows = [
        {
            "id": f"q{i}",
            "image": [str(media / "a.png")],
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A lung."}],
        }
        for i in range(2)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "--model", "{model}", "What?", "--max-new-tokens", "1"],
        ["predict", "--model", "{model}", "--data", "{data}", "--out", "{tmp}/o.jsonl", "--max-new-tokens", "1"],
        ["score", "--model", "{model}", "--data", "{data}", "--out", "{tmp}/o.jsonl"],
        ["evaluate", "--model", "{model}", "--benchmark", "own", "--data-root", "{data}", "--out", "{tmp}/e"],
        ["demo", "--model", "{model}"],
        ["checkpoint", "inspect", "{model}"],
        ["checkpoint", "convert", "{model}", "{tmp}/c"],
        ["checkpoint", "export", "{model}", "{tmp}/x", "--format", "llava-hf"],
        ["checkpoint", "export", "{model}", "{tmp}/g", "--format", "gguf"],
        ["checkpoint", "merge", "{model}", "{tmp}/m"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_no_command_runs_code_of_a_folder(medmvl: Run, trapped, data, tmp_path, mark, arguments, monkeypatch):
    monkeypatch.setattr(
        "medmvl.serving.page.run.page_model", lambda *_: pytest.skip("the model was loaded without its code")
    )
    status, err = medmvl(*(word.format(model=trapped, data=data, tmp=tmp_path) for word in arguments))
    assert not mark.exists()
    assert status in (0, 2), err
    assert "Do you wish to run" not in err


@pytest.mark.parametrize("trapped_part", ["llm", "encoder", "checkpoint"])
def test_training_from_a_folder_runs_none_of_its_code(
    medmvl: Run, trapped_parts, trapped, data, tmp_path, mark, trapped_part, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    fresh_llm = {**LLM, "tokenizer": {"vocab_size": 300}}
    encoder = {"name": "siglip", "vision_config": SIGLIP}
    recipe = {
        "name": "trap",
        "model": {
            "llm": {"init_from": str(trapped_parts["llm"])} if trapped_part == "llm" else fresh_llm,
            "image": {
                "encoder": {"name": "siglip", "init_from": str(trapped_parts["encoder"])}
                if trapped_part == "encoder"
                else encoder,
                "connector": "mlp2x_gelu",
            },
        },
        "data": {"d": {"path": str(data)}},
        "stages": [
            {
                "name": "a",
                "train": {"image_connector": "full"},
                "lr": 1e-3,
                "batch_size": 2,
                "max_steps": 1,
                "data": ["d"],
            }
        ],
    }
    if trapped_part == "checkpoint":
        recipe.pop("model")
        recipe["stages"][0]["from"] = str(trapped)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    status, err = medmvl("train", "r.yaml", "--out", "run")
    assert not mark.exists()
    assert status in (0, 2), err


def test_adapter_files_next_to_a_model_are_refused(medmvl: Run, model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "target_modules": ["q_proj"]})
    save_file({}, folder / "adapter_model.safetensors")
    status, err = medmvl("ask", "--model", folder, "What?")
    assert status == 2
    assert "adapter_config.json" in err
    with pytest.raises(CheckpointError, match="Merge them first"):
        refuse_adapters(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": r"(a+)+$"},
        {"target_modules": [r"(a+)+$"]},
        {"target_modules": ["q_proj"], "rank_pattern": {"(a+)+$": 4}},
        {"target_modules": ["q_proj"], "layers_pattern": "(a+)+$"},
        {"target_modules": ["q_proj"], "peft_type": "IA3"},
    ],
)
def test_patterns_in_foreign_adapters_are_refused(medmvl: Run, model_folder, tmp_path, settings):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_json(
        adapter / "adapter_config.json",
        {"peft_type": "LORA", "base_model_name_or_path": str(model_folder), "r": 2, **settings},
    )
    save_file({}, adapter / "adapter_model.safetensors")
    status, err = medmvl("checkpoint", "merge", adapter, tmp_path / "out")
    assert status == 2
    assert "adapter_config.json" in err
