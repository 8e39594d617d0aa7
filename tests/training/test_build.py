"""Parts named by a recipe become a model and a processor that fit each other."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2Config,
)

from medmvl.errors import ModelError, RecipeError
from medmvl.models.budget import budget
from medmvl.training.build import build, build_config, train_tokenizer
from medmvl.training.recipe_io import load_recipe

from .conftest import MODEL


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An LLM with its tokenizer and a CLIP encoder with its image processor, as from a hub."""
    root = tmp_path_factory.mktemp("parts")
    tokenizer = train_tokenizer(["Is there a nodule? yes no"] * 3, 300)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "llm")
    tokenizer.save_pretrained(root / "llm")
    clip = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    CLIPVisionModel(clip).save_pretrained(root / "clip")
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size).save_pretrained(root / "clip")
    return root


def test_pretrained_parts_bring_weights_tokenizer_and_preprocessing(recipe, folders):
    settings = recipe({})
    settings["model"] = {
        "llm": {"init_from": str(folders / "llm"), "max_length": 64},
        "image": {"encoder": {"name": "clip", "init_from": str(folders / "clip")}},
        "volume": {
            "encoder": {
                "name": "slicewise",
                "slices": 4,
                "encoder": {"name": "clip", "init_from": str(folders / "clip")},
            },
            "connector": {"pooling": "average", "projector": "linear"},
        },
    }
    model, processor = build(load_recipe(settings))
    source = AutoModelForCausalLM.from_pretrained(folders / "llm")
    assert torch.equal(model.get_input_embeddings().weight, source.get_input_embeddings().weight)
    clip = CLIPVisionModel.from_pretrained(folders / "clip").state_dict()
    key = "encoder.layers.0.mlp.fc1.weight"
    found = [value for name, value in model.state_dict().items() if name.endswith(key)]
    assert len(found) == 2
    assert all(torch.equal(value, clip[key]) for value in found)
    assert processor.image["image_mean"][0] == pytest.approx(0.48145466)
    normalization = processor.volume_processor.normalization
    assert normalization.mean == pytest.approx((0.48145466 + 0.4578275 + 0.40821073) / 3)
    assert processor.max_length == 64
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_config_alone_says_the_same_as_the_built_model(recipe):
    described = load_recipe(recipe({}))
    config, processor = build_config(described)
    model, built = build(described)
    counts = budget(config).parameters
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert (processor.image_tokens, processor.volume_tokens) == (built.image_tokens, built.volume_tokens)
    assert config.image_token_id == model.config.image_token_id


def test_equal_seeds_give_equal_models(recipe, tmp_path):
    from medmvl.training.run import train

    first = train(recipe({"max_steps": 1}), tmp_path / "a")
    second = train(recipe({"max_steps": 1}), tmp_path / "b")
    for name in ("model.safetensors", "tokenizer.json", "config.json", "processor_config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    other = train(recipe({"max_steps": 1}, seed=4), tmp_path / "c")
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_a_trained_tokenizer_writes_everything_and_keeps_digits_apart():
    tokenizer = train_tokenizer(["A nodule of 12 mm.", "No effusion."] * 5, 320)
    for text in ("A nodule of 12 mm.", "Größe 3 µm 🫁", "<box>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert [tokenizer.decode([i]) for i in tokenizer("12")["input_ids"]] == ["1", "2"]
    assert len(tokenizer("<image>")["input_ids"]) == 1
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"llm": {"init_from": "/nowhere/at-all"}}, ModelError, "/nowhere/at-all"),
        ({"image": {"encoder": {"name": "siglipp"}}}, RecipeError, "Did you mean 'siglip'"),
        ({"image": MODEL["image"] | {"connector": "mlpx"}}, RecipeError, "projector"),
        (
            {"volume": MODEL["volume"] | {"geometry": "chest-multiwindow"}},
            RecipeError,
            "3 channels, the encoder takes 1",
        ),
        ({"template": "chatmll"}, RecipeError, "Did you mean 'chatml'"),
    ],
)
def test_what_cannot_be_built_is_explained(recipe, change, error, words):
    settings = recipe({})
    settings["model"] |= change
    with pytest.raises(error) as caught:
        build(load_recipe(settings))
    assert words in str(caught.value)


def test_an_encoder_without_its_image_processor_is_refused(recipe, folders, tmp_path):
    import shutil

    bare = shutil.copytree(folders / "clip", tmp_path / "clip")
    (bare / "preprocessor_config.json").unlink()
    settings = recipe({})
    settings["model"]["image"] = {"encoder": {"name": "clip", "init_from": str(bare)}}
    with pytest.raises(ModelError, match="preprocessor_config.json"):
        build(load_recipe(settings))


def test_encoders_of_a_checkpoint_start_another_model_and_keep_their_preprocessing(recipe, tmp_path):
    from medmvl.training.run import train

    settings = recipe({"max_steps": 1})
    settings["model"]["volume"]["geometry"] = "m3d"
    first = train(settings, tmp_path / "a")
    again = recipe({})
    for tower in ("image", "volume"):
        name = again["model"][tower]["encoder"]["name"]
        again["model"][tower] = {"encoder": {"name": name, "init_from": str(first)}}
    model, processor = build(load_recipe(again))
    source = load_file(first / "model.safetensors")
    encoders = {name: value for name, value in model.state_dict().items() if ".encoder." in name and "towers" in name}
    assert encoders
    assert all(torch.equal(source[name], value) for name, value in encoders.items())
    assert processor.volume_processor.geometry.name == "m3d"
    assert processor.volume_processor.normalization.scale == 1
    assert processor.image["size"] == {"height": 16, "width": 16}


def test_volumes_come_from_a_cache_of_the_same_geometry(recipe, data_folder, tmp_path):
    from medmvl.data.formats import read_samples
    from medmvl.imaging import read_volume
    from medmvl.imaging.cache import CacheWriter, Fingerprint, key_of
    from medmvl.training.run import train
    from medmvl.training.run_folder import read_log

    settings = recipe({"max_steps": 1, "batch_size": 18})
    _, processor = build(load_recipe(settings))
    geometry = processor.volume_processor.geometry
    writer = CacheWriter(tmp_path / "cache", geometry)
    for name in sorted({path for sample in read_samples(data_folder / "d.jsonl") for path in sample.volumes}):
        path = data_folder / name
        array = geometry(read_volume(str(path))).numpy()
        writer.add(key_of(path, data_folder, writer.salt), array * 0 + 7, Fingerprint.of(path))
    writer.close()
    train(settings, tmp_path / "plain")
    cached = settings | {"run": settings["run"] | {"volume_cache": str(tmp_path / "cache")}}
    train(cached, tmp_path / "cached")
    losses = [read_log(tmp_path / name / "log.jsonl")[0]["loss"] for name in ("plain", "cached")]
    assert losses[0] != losses[1]  # the cache was given other voxels on purpose
    assert json.loads((tmp_path / "cache" / "manifest.json").read_text())["geometry_hash"] == geometry.hash
