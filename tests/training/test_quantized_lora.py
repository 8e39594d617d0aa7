"""LoRA on quantized weights (QLoRA): the finished checkpoint is plain, and is the model that was trained."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from medmvl.checkpoints import adapt, load_adapted, merge
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.probe import probe_batch, probe_logits
from medmvl.models.quantized import QuantizedLinear
from medmvl.training.engine.trainable import Adaptation, freeze_and_adapt
from medmvl.training.recipe import LanguageStage, Recipe
from medmvl.training.run import train
from medmvl.training.run_folder import read_log

from .conftest import CONNECTORS

PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}
PRESENT = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package} (extra quantize)"),
    )
    for kind, package in PACKAGES.items()
]


def stage(kind: str, **lora: object) -> dict[str, object]:
    return {"train": {**CONNECTORS, "llm": {"mode": "lora", "lora": {"r": 4, "quantize": kind, **lora}}}, "lr": 1e-2}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", PRESENT)
def test_a_stage_trains_and_ends_as_a_plain_checkpoint(recipe, tmp_path, kind, precision):
    train(recipe({"train": CONNECTORS, "max_steps": 1}, {**stage(kind), "precision": precision}), tmp_path / "run")
    before, after = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("s0", "s1"))
    assert {name: value.shape for name, value in before.items()} == {name: v.shape for name, v in after.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed)
    assert all("_proj" in name or "connector" in name for name in changed)
    losses = [row["loss"] for row in read_log(tmp_path / "run" / "log.jsonl") if row["stage"] == "s1"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", PRESENT)
def test_kept_adapters_and_the_quantized_start_are_the_finished_model(recipe, tmp_path, kind):
    model = train(recipe({"train": CONNECTORS, "max_steps": 1}, {**stage(kind), "max_steps": 2}), tmp_path / "run")
    finished = MedMVLForConditionalGeneration.from_pretrained(model)
    batch = probe_batch(finished.config)
    expected = probe_logits(finished, batch)
    adapted = load_adapted(model / "adapter", quantize=kind).get_base_model()
    assert float((probe_logits(adapted, batch) - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.parametrize("lora", [{}, {"dora": True}, {"rslora": True}], ids=["lora", "dora", "rslora"])
@pytest.mark.parametrize("kind", PRESENT)
def test_the_merged_model_is_the_trained_one(recipe, tmp_path, kind, lora):
    """Measured worst difference, relative to the largest logit: 3e-7."""
    folder = train(recipe({"train": CONNECTORS, "max_steps": 1}), tmp_path / "run")
    model = MedMVLForConditionalGeneration.from_pretrained(folder)
    applied = freeze_and_adapt(model, Adaptation.of(LanguageStage.model_validate({"name": "q", **stage(kind, **lora)})))
    assert any(isinstance(module, QuantizedLinear) for module in model.language_model.modules())
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in applied.trainable().items():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    batch = probe_batch(model.config)
    trained = probe_logits(model, batch)
    merged = probe_logits(applied.finish(), batch)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    assert (merged - trained).abs().max() <= 1e-5 * trained.abs().max()


@pytest.mark.parametrize("kind", PRESENT)
def test_a_killed_run_goes_on_bit_by_bit(recipe, tmp_path, kind):
    two = recipe({**stage(kind), "max_steps": 4, "save_every": 2})
    train(two, tmp_path / "whole")
    train(recipe({**stage(kind), "max_steps": 4, "save_every": 2}), tmp_path / "again")
    whole, again = tmp_path / "whole", tmp_path / "again"
    for file in again.joinpath("s0").glob("*.*"):
        file.unlink()  # the finished files are gone, the checkpoints are there
    train(two, again, resume=True)
    first, second = (load_file(run / "s0" / "model.safetensors") for run in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", PRESENT)
def test_adapters_trained_on_quantized_weights_are_an_ordinary_folder(recipe, tmp_path, kind):
    """With their connectors; on the base in full and in few bits; merging gives base and adapter."""
    base = train(recipe({"train": CONNECTORS, "max_steps": 1}), tmp_path / "run")
    adapted = adapt(MedMVLForConditionalGeneration.from_pretrained(base), quantize=kind)
    batch = probe_batch(adapted.get_base_model().config)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(**batch, labels=batch["input_ids"].clamp(max=200)).loss.backward()
        optimizer.step()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = probe_logits(adapted.get_base_model(), batch)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name or ".connector." in name for name in stored)
    assert any(".connector." in name for name in stored)
    again = load_adapted(tmp_path / "adapter", quantize=kind)
    assert (probe_logits(again.get_base_model(), batch) - expected).abs().max() <= 1e-5 * expected.abs().max()
    in_full = probe_logits(load_adapted(tmp_path / "adapter").get_base_model(), batch)
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = MedMVLForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert (probe_logits(merged, batch) - in_full).abs().max() <= 1e-5 * in_full.abs().max()


def test_sharded_weights_are_not_quantized(recipe):
    values = recipe(stage("nf4"))
    with pytest.raises(ValidationError, match="does not go with run.strategy fsdp"):
        Recipe.model_validate({**values, "run": {"strategy": "fsdp"}})
