"""M3D-CLIP and MedM-CLIP start from their published folders: only the vision part, all of it, and with gradients."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import zoo
from tests.parity.sets import HERE
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from medmvl.errors import CheckpointError, ModelError
from medmvl.models import MedMVLForConditionalGeneration, parts
from medmvl.models.encoders import ENCODERS, encoder_spec

VARIANTS = {"medmclip": "v3_medmclip_spatial_qwen2", "m3dclip": "v4_m3dclip_spatial_qwen2"}


@pytest.fixture(params=VARIANTS)
def published(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The encoder's own folder, as published on the hub: config, and weights with the text tower."""
    name = request.param
    folder = tmp_path / name
    shutil.copytree(HERE / "pretrained" / f"{name}-tiny", folder)
    state = load_file(HERE / "checkpoints" / VARIANTS[name] / "model.safetensors")
    prefix = "encoder_image3d.encoder."
    save_file(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, folder / "model.safetensors"
    )
    return name, folder


def test_it_starts_from_a_published_folder(published: tuple[str, Path]) -> None:
    name, folder = published
    torch.manual_seed(0)
    encoder = {"name": name, "init_from": str(folder), "select_feature": "patch"}
    model = MedMVLForConditionalGeneration.from_parts(llm=zoo.llm("qwen2"), volume=(encoder, "mlp2x_gelu"))
    module = parts(model)["volume_encoder"]
    spec = model.config.tower("volume").encoder_spec
    weights = load_file(folder / "model.safetensors")
    state = module.state_dict()
    used = {ours: weights[theirs] for theirs in weights if (ours := spec.pretrained_key(theirs)) is not None}
    assert used.keys() == state.keys()
    assert all(torch.equal(state[key], value.float()) for key, value in used.items())
    assert not any("text" in key or "language" in key for key in state)


def test_gradients_flow(published: tuple[str, Path]) -> None:
    """The reference detaches MedM-CLIP's features; here every weight moves."""
    name, folder = published
    spec, module = ENCODERS[name].from_pretrained(str(folder), name=name)
    module.train()(torch.randn(1, 1, *spec.input_size)).square().mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in module.parameters() if p.ndim > 1)


def test_weights_of_another_size_are_refused(published: tuple[str, Path]) -> None:
    name, folder = published
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_size": 48}))
    with pytest.raises(CheckpointError, match="of another shape"):
        ENCODERS[name].from_pretrained(str(folder), name=name)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        ENCODERS["m3dclip"].from_pretrained(str(tmp_path), name="m3dclip")


def drop(folder: Path, name: str) -> None:
    state = load_file(folder / "model.safetensors")
    del state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("key", ["siglip", "clip", "dinov2", "siglip2:naflex", "convnext", "transformers"])
def test_transformers_encoders_start_from_folders_that_are_whole(key: str, tmp_path: Path) -> None:
    """A weight that is missing would be random, and transformers only warns of it."""
    torch.manual_seed(0)
    settings = zoo.encoder(key)
    vision = dict(settings.pop("vision_config"))
    config = AutoConfig.for_model(vision.pop("model_type"), **vision)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    _, module = ENCODERS[settings["name"]].from_pretrained(str(tmp_path), **settings)
    stored = load_file(tmp_path / "model.safetensors")
    state = {name.removeprefix("model."): value for name, value in module.state_dict().items()}
    assert all(torch.equal(value, stored[name]) for name, value in state.items() if name in stored)
    assert len(stored.keys() & state.keys()) > 5
    drop(tmp_path, next(name for name in sorted(stored) if name in state))
    with pytest.raises(CheckpointError, match=r"lacks 1 weight"):
        ENCODERS[settings["name"]].from_pretrained(str(tmp_path), **settings)


def test_an_llm_starts_from_a_folder_that_is_whole(tmp_path: Path) -> None:
    for kind in ("qwen2", "llama"):  # a tied head is not missing
        settings = zoo.llm(kind)
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
        MedMVLForConditionalGeneration.from_parts(str(tmp_path / kind))
    drop(tmp_path / "llama", "lm_head.weight")
    with pytest.raises(CheckpointError, match=r"lacks 1 weight.*lm_head"):
        MedMVLForConditionalGeneration.from_parts(str(tmp_path / "llama"))


@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        ({"model_type": "vit_mae", "image_size": 32, "patch_size": 8}, "mask_ratio"),
        ({"model_type": "pixtral", "image_size": 32, "patch_size": 8}, "joins the images"),
        ({"model_type": "clip_vision_model"}, "name it 'clip'"),
        ({"model_type": "nobody"}, "none that transformers knows"),
    ],
)
def test_vision_models_whose_features_have_no_places(vision: dict[str, object], reason: str) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ModelError, match=reason):
        encoder_spec({"name": "transformers", "vision_config": {**small, **vision}}).grid()
