"""Compiled layers give what plain ones give, and are not compiled again for every batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medmvl.errors import RecipeError
from medmvl.training.acceleration import compiled
from medmvl.training.acceleration.compiled import rounded
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import train
from medmvl.training.run_folder import read_log
from processes import in_two_processes


def test_few_lengths_hold_every_row():
    lengths = [rounded(length) for length in range(1, 2049)]
    assert all(length <= found <= max(64, 1.25 * length) for length, found in enumerate(lengths, start=1))
    assert lengths == sorted(lengths)
    assert len(set(lengths)) == 1 + 5 * compiled.STEPS


@pytest.fixture
def graphs(monkeypatch):
    """Compile without generating code, and list what was compiled."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    torch._dynamo.reset()
    yield seen
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"packing": False}, marks=pytest.mark.slow),
        {"precision": "bf16", "activation_checkpointing": True},
    ],
)
def test_compiled_run_equals_plain_run_with_bucket_lengths(recipe, tmp_path, graphs, settings):
    stage = {"max_steps": 4, "lr": 1e-3, **settings}
    look = {"data": ["held"], "every": 2, "samples": 3, "generate": 1, "max_new_tokens": 3}
    data = {"d": {"path": "d.jsonl"}, "held": {"path": "d.jsonl"}}
    stages = ({**stage, "data": ["d"], "evaluate": look}, {**stage, "data": ["d"], "train": {"llm": "lora"}})
    train(recipe(*stages, data=data), tmp_path / "plain")
    assert not graphs
    train(recipe(*({**one, "compile": True} for one in stages), data=data), tmp_path / "compiled")
    assert graphs
    rough = "precision" in settings
    plain, done = (read_log(tmp_path / name / "log.jsonl") for name in ("plain", "compiled"))
    for a, b in zip(plain, done, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2 if rough else 1e-5)
        rows = b["positions"] // (1 if settings.get("packing", True) else 6)
        assert rows == rounded(rows)
        assert b["tokens"] == a["tokens"]
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "compiled"))
    assert one.keys() == other.keys()
    if not rough:
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-4)


def test_batches_that_come_again_compile_nothing(recipe, tmp_path, graphs):
    counts = []
    for steps in (1, 4):
        torch._dynamo.reset()
        graphs.clear()
        # Every step holds all records, in another order.
        train(recipe({"max_steps": steps, "batch_size": 18, "lr": 1e-3, "compile": True}), tmp_path / str(steps))
        counts.append(len(graphs))
    assert counts[0] == counts[1]


def test_untested_compile_combinations_are_refused(recipe):
    with pytest.raises(RecipeError, match="`compile` does not go with run.strategy zero3"):
        load_recipe(recipe({"compile": True}, run={"strategy": "zero3"}))


@pytest.mark.slow  # code is generated and compiled: a minute and more
def test_generated_code_trains_the_same(recipe, tmp_path):
    torch._dynamo.reset()
    stage = {"max_steps": 3, "lr": 1e-3}
    train(recipe(stage), tmp_path / "plain")
    train(recipe({**stage, "compile": True}), tmp_path / "compiled")
    plain, done = (read_log(tmp_path / name / "log.jsonl") for name in ("plain", "compiled"))
    assert [row["loss"] for row in done] == pytest.approx([row["loss"] for row in plain], rel=1e-5)


def train_without_generating_code(recipe: dict, out: Path) -> None:
    compiled.BACKEND = "eager"
    train(recipe, out)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_two_processes_train_compiled_layers(recipe, tmp_path, strategy):
    if strategy == "zero2":
        pytest.importorskip("deepspeed")
    stage = {"max_steps": 3, "batch_size": 8, "lr": 1e-3}
    train(recipe(stage), tmp_path / "one")
    run = {"progress": False, "device": "cpu", "strategy": strategy}
    in_two_processes(train_without_generating_code, recipe({**stage, "compile": True}, run=run), tmp_path / "two")
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
