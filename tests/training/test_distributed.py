"""Two processes train what one does, also when one of them never sees an image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medmvl.errors import RecipeError
from medmvl.training.acceleration import deepspeed as zero
from medmvl.training.build import build
from medmvl.training.engine.callbacks import Callback
from medmvl.training.engine.state import ValueReader
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import train
from medmvl.training.run_folder import read_log
from processes import (
    in_two_processes,
    train_until,
    train_where_the_first_look_is_the_best,
    train_with_a_poisoned_step,
)

from .conftest import CONNECTORS, MODEL


def assert_same_course(one: Path, other: Path, looser: float = 1.0) -> None:
    first, second = read_log(one / "log.jsonl"), read_log(other / "log.jsonl")
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=looser * 1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=looser * 1e-4)
        for key in ("stage", "step", "lr", "tokens", "supervised"):
            assert a[key] == b[key]
    weights, others = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    for key in weights:
        if looser > 1 and key.endswith("k_proj.bias"):
            continue  # no loss depends on it, so that its gradient is rounding alone, which Adam takes for a gradient
        # Adam divides by the square root of tiny second moments, which magnifies rounding.
        torch.testing.assert_close(weights[key], others[key], rtol=looser * 1e-3, atol=looser * 2e-4)


def test_two_times_four_equal_eight(recipe, tmp_path):
    stages = (
        {"train": CONNECTORS, "max_steps": 2, "batch_size": 8, "lr": 1e-3},
        {"max_steps": 3, "batch_size": 8, "micro_batch_size": 2, "lr": 1e-3, "save_every": 2},
    )
    train(recipe(*stages), tmp_path / "one")
    in_two_processes(train, recipe(*stages), tmp_path / "two")
    assert_same_course(tmp_path / "one", tmp_path / "two")
    checkpoint = tmp_path / "two" / "s1" / "checkpoints" / "checkpoint-2"
    assert {"rng_state_0.pth", "rng_state_1.pth", "checksums.json"} <= {path.name for path in checkpoint.iterdir()}


def test_a_rank_without_images_does_not_hang(recipe, tmp_path):
    # Micro-batches are sorted by kind of medium, so with one micro-batch per rank one gets the texts and images and
    # the other the volumes.
    stage = {"max_steps": 2, "batch_size": 6, "lr": 1e-3}
    train(recipe(stage), tmp_path / "one")
    in_two_processes(train, recipe(stage), tmp_path / "two")
    assert_same_course(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow  # sharding rules are derived for every operation and shape on first use: minutes on two cores
def test_sharded_weights_train_the_same(recipe, tmp_path):
    stages = (
        {"max_steps": 3, "batch_size": 8, "micro_batch_size": 2, "lr": 1e-3, "save_every": 2},
        {
            "train": {"llm": {"mode": "lora", "lora": {"r": 2}}, **CONNECTORS},
            "max_steps": 2,
            "batch_size": 6,
            "lr": 1e-3,
        },
    )
    # 17 records: one process has a batch more to look at than the other, and generation needs both.
    look = {"data": ["held"], "every": 2, "samples": 17, "generate": 2, "max_new_tokens": 3}
    stages[0].update(evaluate=look, data=["d"])
    stages[1].update(data=["d"])
    run = {"progress": False, "device": "cpu", "strategy": "fsdp"}
    data = {"d": {"path": "d.jsonl"}, "held": {"path": "d.jsonl"}}
    train(recipe(*stages, data=data), tmp_path / "one")
    in_two_processes(train, recipe(*stages, run=run, data=data), tmp_path / "two")
    assert_same_course(tmp_path / "one", tmp_path / "two")
    looks = [read_log(tmp_path / name / "evaluation.jsonl") for name in ("one", "two")]
    assert [row["loss"] for row in looks[1]] == pytest.approx([row["loss"] for row in looks[0]], rel=1e-4)
    answers = [(tmp_path / name / "samples.jsonl").read_text() for name in ("one", "two")]
    assert answers[0] == answers[1]
    checkpoint = tmp_path / "two" / "s0" / "checkpoints" / "checkpoint-2"
    assert_same_adapters(tmp_path / "one", tmp_path / "two")
    pieces = [load_file(checkpoint / f"trainable-{rank}-of-2.safetensors") for rank in range(2)]
    name = next(iter(pieces[0]))
    assert pieces[0][name].shape[0] < load_file(tmp_path / "one" / "model" / "model.safetensors")[name].shape[0]


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_run_of_two_processes_can_be_finished_by_one(recipe, tmp_path, strategy):
    stage = {"max_steps": 4, "batch_size": 8, "lr": 1e-3, "save_every": 2}
    run = {"progress": False, "device": "cpu", "strategy": strategy}
    train(recipe(stage), tmp_path / "one")
    in_two_processes(train_until, 3, recipe(stage, run=run), tmp_path / "two")
    train(recipe(stage), tmp_path / "two", resume=True)
    assert_same_course(tmp_path / "one", tmp_path / "two")


def assert_same_adapters(one: Path, two: Path) -> None:
    """The adapters that the last stage kept beside its model have equal names and settings, and values equal to rounding."""
    expected, found = (load_file(run / "model/adapter/adapter_model.safetensors") for run in (one, two))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-4)
    configs = [(run / "model/adapter/adapter_config.json").read_text() for run in (one, two)]
    assert configs[0] == configs[1]


def test_zero_without_deepspeed_names_the_extra(monkeypatch):
    import sys

    from medmvl.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MissingExtraError, match=r"medmvl\[deepspeed\]"):
        zero.settings(2, accumulation=1, world=2, width=32, max_grad_norm=1.0, half=False)


@pytest.mark.slow  # DeepSpeed takes its time to begin
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_zero_trains_the_same_and_goes_on_without_it(recipe, tmp_path, strategy):
    pytest.importorskip("deepspeed")
    # DeepSpeed adds gradients up in another order, and Adam's first steps magnify rounding.
    stage = {"max_steps": 4, "batch_size": 8, "micro_batch_size": 2, "lr": 1e-3, "save_every": 2}
    run = {"progress": False, "device": "cpu", "strategy": strategy}
    train(recipe(stage), tmp_path / "one")
    in_two_processes(train, recipe(stage, run=run), tmp_path / "two")
    assert_same_course(tmp_path / "one", tmp_path / "two", looser=2)
    in_two_processes(train_until, 3, recipe(stage, run=run), tmp_path / "cut")
    shutil.copytree(tmp_path / "cut", tmp_path / "alone")
    in_two_processes(train, recipe(stage, run=run), tmp_path / "cut", resume=True)
    assert_same_course(tmp_path / "one", tmp_path / "cut", looser=2)
    train(recipe(stage), tmp_path / "alone", resume=True)  # DeepSpeed is not needed to finish
    assert_same_course(tmp_path / "one", tmp_path / "alone", looser=2)


@pytest.mark.slow  # DeepSpeed takes its time to begin
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_zero_runs_stages_of_every_kind_with_unequal_batches(recipe, tmp_path, strategy):
    pytest.importorskip("deepspeed")
    # One process gets the texts and images, the other the volumes; it also looks at one batch more of held-out records.
    look = {"data": ["held"], "every": 2, "samples": 17, "generate": 2, "max_new_tokens": 3}
    lora = {"train": {"llm": {"mode": "lora", "lora": {"r": 2, "dora": True}}, **CONNECTORS}}
    stages = (
        {"train": CONNECTORS, "feature_cache": True, "max_steps": 2, "batch_size": 6, "lr": 1e-3, "data": ["d"]},
        {"max_steps": 2, "batch_size": 6, "lr": 1e-3, "data": ["d"], "evaluate": look},
        {**lora, "max_steps": 2, "batch_size": 6, "lr": 1e-3, "data": ["d"]},
    )
    run = {"progress": False, "device": "cpu", "strategy": strategy}
    data = {"d": {"path": "d.jsonl"}, "held": {"path": "d.jsonl"}}
    train(recipe(*stages, data=data), tmp_path / "one")
    in_two_processes(train, recipe(*stages, run=run, data=data), tmp_path / "two")
    assert_same_course(tmp_path / "one", tmp_path / "two", looser=3)
    assert_same_adapters(tmp_path / "one", tmp_path / "two")
    answers = [(tmp_path / name / "samples.jsonl").read_text() for name in ("one", "two")]
    assert answers[0] == answers[1]


@pytest.mark.slow  # DeepSpeed takes its time to begin
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_zero_ends_with_the_best_weights(recipe, tmp_path, strategy):
    pytest.importorskip("deepspeed")
    look = {"data": ["held"], "every": 1, "samples": 8, "generate": 0, "patience": 3}
    stage = {"max_steps": 3, "batch_size": 8, "lr": 1e-2, "data": ["d"], "evaluate": look}
    run = {"progress": False, "device": "cpu", "strategy": strategy}
    data = {"d": {"path": "d.jsonl"}, "held": {"path": "d.jsonl"}}
    in_two_processes(train_where_the_first_look_is_the_best, recipe(stage, run=run, data=data), tmp_path / "run")
    best = ValueReader(tmp_path / "run" / "s0" / "checkpoints" / "checkpoint-1", "trainable")
    ended = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert set(best.names) & ended.keys()
    assert all(torch.equal(ended[name], best[name]) for name in best.names if name in ended)


def train_and_find_the_largest_weight(recipe: dict, out: Path) -> None:
    seen = []

    class NoteLargestWeight(Callback):
        def on_gradients(self, loop):
            seen.append(max(p.numel() for p in loop.engine.module.parameters()))

    train(recipe, out, callbacks=[NoteLargestWeight()])
    Path(out, f"seen-{torch.distributed.get_rank()}.json").write_text(json.dumps(seen))


@pytest.mark.slow  # DeepSpeed takes its time to begin
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_zero_evaluates_pixels_and_trains_on_stored_features(recipe, tmp_path, strategy):
    pytest.importorskip("deepspeed")
    look = {"data": ["held"], "every": 1, "samples": 17, "generate": 1, "max_new_tokens": 2}
    stage = {"train": CONNECTORS, "feature_cache": True, "max_steps": 2, "batch_size": 6, "lr": 1e-3, "data": ["d"]}
    data = {"d": {"path": "d.jsonl"}, "held": {"path": "d.jsonl"}}
    run = {"progress": False, "device": "cpu", "strategy": strategy}
    described = recipe({**stage, "evaluate": look}, run=run, data=data)
    # Wide enough that zero3 cuts the encoders' weights, which then are gathered by all processes or none.
    described["model"]["image"]["encoder"]["vision_config"] |= {"hidden_size": 32, "intermediate_size": 64}
    described["model"]["volume"]["encoder"]["width"] = 32
    train(described, tmp_path / "one")
    in_two_processes(train, described, tmp_path / "two")
    assert_same_course(tmp_path / "one", tmp_path / "two", looser=3)
    looks = [read_log(tmp_path / name / "evaluation.jsonl") for name in ("one", "two")]
    assert [row["loss"] for row in looks[1]] == pytest.approx([row["loss"] for row in looks[0]], rel=1e-4)


def test_zero3_refuses_encoder_with_varying_passes(recipe):
    settings = recipe({})
    settings["model"]["volume"]["encoder"] = {"name": "slicewise", "slices": 4, "slices_per_pass": 2}
    settings["model"]["volume"]["encoder"]["encoder"] = MODEL["image"]["encoder"]
    model, _ = build(load_recipe(settings))
    zero.use_all_towers(model, (), 2)
    with pytest.raises(RecipeError, match="slices_per_pass"):
        zero.use_all_towers(model, (), 3)


@pytest.mark.slow  # DeepSpeed takes its time to begin
def test_zero3_holds_no_weight_whole(recipe, tmp_path):
    pytest.importorskip("deepspeed")
    run = {"progress": False, "device": "cpu", "strategy": "zero3"}
    stages = [{"max_steps": 1, "batch_size": 8, "lr": 1e-3}]
    stages += [{"train": {"llm": {"mode": "lora", "lora": {"r": 2}}}, "max_steps": 1, "batch_size": 6, "lr": 1e-3}]
    in_two_processes(train_and_find_the_largest_weight, recipe(*stages, run=run), tmp_path / "run")
    for rank in range(2):
        largest = json.loads((tmp_path / "run" / f"seen-{rank}.json").read_text())
        assert len(largest) == 2
        assert max(largest) < 10 * 32  # ten times the LLM's width: below that DeepSpeed keeps them at hand


@pytest.mark.slow  # DeepSpeed takes its time to begin
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_a_nan_on_one_device_moves_no_weight_on_any(recipe, tmp_path, strategy, precision):
    if strategy != "ddp":
        pytest.importorskip("deepspeed")
    run = {"progress": False, "device": "cpu", "strategy": strategy}
    stage = {"max_steps": 3, "batch_size": 8, "lr": 1e-3, "precision": precision, "save_every": 1, "keep": 3}
    in_two_processes(train_with_a_poisoned_step, 1, recipe(stage, run=run), tmp_path / "run")
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [row.get("skipped", False) for row in log] == [False, True, False]
    checkpoints = tmp_path / "run" / "s0" / "checkpoints"
    before, after = (ValueReader(checkpoints / f"checkpoint-{step}", "trainable") for step in (1, 2))
    assert all(torch.equal(before[name], after[name]) for name in before.names)
    ended = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert any(not torch.equal(ended[name], after[name]) for name in after.names if name in ended)
    assert all(torch.isfinite(value).all() for value in ended.values())


@pytest.mark.slow  # DeepSpeed takes its time to begin
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_run_with_skipped_first_step_resumes(recipe, tmp_path, strategy):
    pytest.importorskip("deepspeed")
    run = {"progress": False, "device": "cpu", "strategy": strategy}
    stage = recipe({"max_steps": 2, "batch_size": 8, "lr": 1e-3, "save_every": 1}, run=run)
    in_two_processes(train_with_a_poisoned_step, 0, stage, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "s0" / "checksums.json").unlink()
    in_two_processes(train, stage, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model").is_dir()
