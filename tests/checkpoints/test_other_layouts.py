"""TinyLLaVA-style folders as sources: the same model under their names gives the same weights and logits."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.parity.sets import HERE

from medmvl.checkpoints import convert, export_llava, inspect_folder, llava
from medmvl.checkpoints.vision import vision_spec
from medmvl.errors import CheckpointError
from medmvl.models import MedMVLConfig, MedMVLForConditionalGeneration
from medmvl.models.probe import probe_batch, probe_logits
from medmvl.models.weight_writer import Entry, expected_tensors, write_weights
from medmvl.models.weights import Weights
from medmvl.processing import MedMVLProcessor

convert_module = importlib.import_module("medmvl.checkpoints.conversion")


@pytest.fixture
def tinyllava(converted: Callable[[str], Path], tmp_path: Path) -> Path:
    """v1 as TinyLLaVA_Factory would have saved it: whole sub-configs, its names of tensors, the tokenizer next to it."""
    ours = converted("v1")
    config = MedMVLForConditionalGeneration.config_class.from_pretrained(ours)
    spec = config.tower("image").encoder_spec
    folder = tmp_path / "tinyllava"
    shutil.copytree(HERE / "pretrained/qwen2-tiny", folder)
    shutil.copy(HERE / "pretrained/siglip-tiny/preprocessor_config.json", folder)
    raw: dict[str, Any] = {
        "model_type": "tinyllava",
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "auto_map": {"AutoConfig": "configuration.TinyLlavaConfig"},
        "llm_model_name_or_path": "Qwen/Qwen2.5-0.5B",
        "vision_model_name_or_path": "google/siglip",
        "connector_type": "mlp2x_gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "cls_patch",
        "image_aspect_ratio": "square",
        "tokenizer_model_max_length": 2048,
        "text_config": config.text_config.to_dict(),
        "vision_config": spec.vision_config,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(raw))
    names = {
        "towers.image.encoder.model.": "vision_tower._vision_tower.vision_model.",
        "towers.image.connector.projector.": "connector._connector.",
    }
    state = {}
    weights = Weights(ours)
    for name in weights:
        theirs = next((new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), name)
        state[theirs] = weights[name]
    state["vision_tower._vision_tower.vision_model.post_layernorm.weight"] = torch.ones(spec.hidden_size)
    save_file(state, folder / "model.safetensors")
    return folder


def edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_tinyllava(tinyllava: Path, converted: Callable[[str], Path], tmp_path: Path) -> None:
    done = convert(tinyllava, tmp_path / "out")
    assert done.layout == "TinyLLaVA"
    assert done.names == {}  # nothing had to be looked up
    assert any("--template" in note for note in done.notes)
    first, second = Weights(converted("v1")), Weights(tmp_path / "out")
    assert set(first) == set(second)
    models = [MedMVLForConditionalGeneration.from_pretrained(f) for f in (converted("v1"), tmp_path / "out")]
    batch = probe_batch(models[0].config)
    assert torch.equal(*(probe_logits(model, batch) for model in models))


def test_tinyllavas_padded_images(tinyllava: Path, tmp_path: Path) -> None:
    from PIL import Image

    edit(tinyllava, image_aspect_ratio="pad")
    convert(tinyllava, tmp_path / "out")
    processor = MedMVLProcessor.from_pretrained(str(tmp_path / "out"))
    assert processor.image_processor is not None
    pixels = processor.image_processor(Image.new("RGB", (64, 16), (255, 255, 255)))
    assert pixels.shape == (3, 64, 64)
    assert float(pixels[:, 32].min()) > 0.9  # the image in the middle
    assert float(pixels[:, 0].abs().max()) < 0.02  # the mean color above it


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("connector_type", "qformer", "no counterpart"),
        ("image_aspect_ratio", "anyres", "laid out as 'anyres'"),
        ("vision_feature_select_strategy", "patch", "no class token"),
        ("vision_config", {"model_type": "mystery"}, "vision model 'mystery'"),
        ("text_config", {}, "no complete text_config"),
    ],
)
def test_what_has_no_counterpart(tinyllava: Path, tmp_path: Path, key: str, value: object, match: str) -> None:
    edit(tinyllava, **{key: value})
    with pytest.raises(CheckpointError, match=match):
        convert(tinyllava, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_template_on_request(tinyllava: Path, tmp_path: Path) -> None:
    convert(tinyllava, tmp_path / "out", template="pretrain")
    assert "pretrain" in (tmp_path / "out" / "chat_template.jinja").read_text().splitlines()[0]


def test_llava_with_other_settings_than_its_weights_is_refused(
    converted: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_llava(converted("v1"), tmp_path / "llava")
    done = convert(tmp_path / "llava", tmp_path / "back")
    assert done.difference < 1e-5

    def another_layer(raw: dict[str, Any], layer: int, feature: str) -> Any:
        spec = vision_spec(raw, layer, feature)
        spec.vision_config["layer_norm_eps"] = 0.1
        return spec

    monkeypatch.setattr(llava, "vision_spec", another_layer)
    with pytest.raises(CheckpointError, match=r"logits differ from the source's \(by transformers\)"):
        convert(tmp_path / "llava", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_folder_that_is_written_otherwise_is_not_kept(
    tinyllava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(entries: dict[str, Entry], folder: Path) -> int:
        name = "language_model.model.norm.weight"
        changed = Entry(name, entries[name].shape, lambda: entries[name].load() + 0.5)
        return write_weights({**entries, name: changed}, folder)

    monkeypatch.setattr(convert_module, "write_weights", write)
    with pytest.raises(CheckpointError, match=r"logits differ from the source's \(by its tensors\)"):
        convert(tinyllava, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_head_of_its_own_is_kept_although_the_config_says_tied(
    converted: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(converted("v1"), folder)
    raw = json.loads((folder / "config.json").read_text())
    edit(folder, tie_word_embeddings=True, text_config={**raw["text_config"], "tie_word_embeddings": True})
    assert "the config says tied" in inspect_folder(folder).facts["head"]
    config = MedMVLConfig.from_pretrained(folder)
    assert "language_model.lm_head.weight" not in expected_tensors(config)
    assert "language_model.lm_head.weight" in expected_tensors(config, Weights(folder))
    assert not config.text_config.tie_word_embeddings
    model = MedMVLForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert not written["tie_word_embeddings"]
    assert not written["text_config"]["tie_word_embeddings"]
    assert "language_model.lm_head.weight" in Weights(tmp_path / "again")
