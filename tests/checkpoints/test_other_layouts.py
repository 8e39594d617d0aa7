"""TinyLLaVA-style folders as sources: the same model under their names gives the same weights and logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.parity.sets import HERE

from medmvl.checkpoints import convert
from medmvl.checkpoints.probe import probe_batch, probe_logits
from medmvl.errors import CheckpointError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.weights import Weights
from medmvl.processing import MedMVLProcessor


@pytest.fixture
def tinyllava(converted: Callable[[str], Path], tmp_path: Path) -> Path:
    """v1 as TinyLLaVA_Factory would have saved it: whole sub-configs, its names of tensors, the tokenizer beside."""
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
    assert float(pixels[:, 0].abs().max()) < 0.02  # the mean colour above it


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
