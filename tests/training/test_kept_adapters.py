"""A stage with LoRA keeps its adapters beside the merged model; on the stage's start they give that model."""

from __future__ import annotations

import logging

import pytest
import torch

from medmvl import MedMVLForConditionalGeneration
from medmvl.checkpoints import load_adapted, merge
from medmvl.files import read_json
from medmvl.models.probe import probe_batch, probe_logits
from medmvl.training.run import train

from .conftest import CONNECTORS, RESNET


def lora(r=2, alpha=4, **settings):
    return {"mode": "lora", "lora": {"r": r, "alpha": alpha, **settings}}


@pytest.mark.parametrize(
    "parts",
    [
        {"llm": lora(), **CONNECTORS},
        {"llm": lora(), "image_encoder": lora(r=3, alpha=9), "volume_connector": "full"},
        {"llm": lora(dora=True)},
        {"llm": lora(rslora=True), "image_encoder": {"only": ["layers"]}},
    ],
    ids=["connectors", "two-ranks", "dora", "rslora-and-encoder"],
)
def test_start_and_adapters_are_the_finished_model(recipe, tmp_path, parts):
    model = train(recipe({"max_steps": 1, "lr": 1e-2}, {"train": parts, "max_steps": 2, "lr": 2e-2}), tmp_path / "run")
    assert not (tmp_path / "run/s0/adapter").exists()
    assert read_json(model / "adapter/adapter_config.json")["base_model_name_or_path"] == "s0"
    finished = MedMVLForConditionalGeneration.from_pretrained(model)
    start = MedMVLForConditionalGeneration.from_pretrained(tmp_path / "run/s0")
    batch = probe_batch(finished.config)
    expected = probe_logits(finished, batch)
    assert not torch.allclose(probe_logits(start, batch), expected, atol=1e-4)  # else the test proves nothing
    adapted = load_adapted(tmp_path / "run/s1/adapter").get_base_model()
    torch.testing.assert_close(probe_logits(adapted, batch), expected, rtol=1e-4, atol=1e-4)
    merge(model / "adapter", tmp_path / "merged")
    again = MedMVLForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(probe_logits(again, batch), expected, rtol=1e-4, atol=1e-4)


def test_running_statistics_are_kept_with_the_encoder(recipe, tmp_path):
    settings = recipe({"train": {"llm": lora(), "image_encoder": "full"}, "max_steps": 2, "lr": 1e-2})
    settings["model"]["image"]["encoder"] = RESNET
    model = train(settings, tmp_path / "run")
    finished = MedMVLForConditionalGeneration.from_pretrained(model).eval()
    adapted = load_adapted(model / "adapter").get_base_model().eval()
    batch = probe_batch(finished.config)
    torch.testing.assert_close(probe_logits(adapted, batch), probe_logits(finished, batch), rtol=1e-4, atol=1e-4)


def test_a_start_elsewhere_is_named_as_the_recipe_names_it(recipe, tmp_path):
    train(recipe({"max_steps": 1}), tmp_path / "first")
    settings = recipe({"train": {"llm": lora()}, "max_steps": 1})
    settings["stages"][0]["from"] = str(tmp_path / "first/model")
    model = train(settings, tmp_path / "second")
    assert read_json(model / "adapter/adapter_config.json")["base_model_name_or_path"] == str(tmp_path / "first/model")
    load_adapted(model / "adapter")


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"llm": "full", "image_encoder": lora()}, "trained in full"),
        ({"llm": lora(), "image_encoder": lora(rslora=True)}, "differ in dora or rslora"),
    ],
)
def test_what_peft_cannot_hold_is_merged_and_said(recipe, tmp_path, caplog, parts, reason):
    with caplog.at_level(logging.WARNING, logger="medmvl"):
        model = train(recipe({"train": parts, "max_steps": 1}), tmp_path / "run")
    assert reason in caplog.text
    assert not (model / "adapter").exists()


def test_equal_runs_give_equal_adapter_files(recipe, tmp_path):
    for name in ("a", "b"):
        train(recipe({"train": {"llm": lora(), **CONNECTORS}, "max_steps": 1}), tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a/model/adapter" / file).read_bytes() == (tmp_path / "b/model/adapter" / file).read_bytes()
