"""A third training objective is one module: a section of the recipe and a class, registered by a plugin."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from medmvl.errors import RecipeError
from medmvl.training.dry_run import dry_run
from medmvl.training.recipe_io import dump_recipe, load_recipe
from medmvl.training.run import train
from medmvl.training.run_folder import read_log
from processes import in_two_processes, killed_before_step

from .conftest import EVERYTHING

PLUGIN = "toy_objective"


@pytest.fixture
def rewarded(recipe):
    """Return a function that makes a recipe with a stage of the toy objective."""

    def make(**stage):
        data = {"d": {"path": "d.jsonl"}, "held": {"path": "d.jsonl"}}
        return recipe({"objective": "rewarded", "data": ["d"], **stage}, plugins=[PLUGIN], data=data)

    return make


def test_toy_objective_trains_and_validates(rewarded, tmp_path):
    evaluate = {"data": ["held"], "every": 2, "metric": "reward", "samples": 5}
    folder = train(rewarded(reward_short=2.0, evaluate=evaluate, max_steps=4), tmp_path / "run")
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    looks = [json.loads(line) for line in (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in looks] == [2, 4]
    before = load_file(tmp_path / "run" / "init" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_reward_changes_the_loss(rewarded, tmp_path):
    losses = []
    for reward in (1.0, 3.0):
        train(rewarded(reward_short=reward, max_steps=1), tmp_path / str(reward))
        losses.append(read_log(tmp_path / str(reward) / "log.jsonl")[0]["loss"])
    assert losses[0] != losses[1]


def test_toy_stage_resumes_bit_identically(rewarded, tmp_path):
    settings = rewarded(max_steps=4, save_every=2, micro_batch_size=3)
    train(settings, tmp_path / "whole")
    with killed_before_step(3) as callbacks:
        train(settings, tmp_path / "cut", callbacks=callbacks)
    train(settings, tmp_path / "cut", resume=True)
    whole, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_toy_stage_runs_in_two_processes(rewarded, tmp_path):
    settings = rewarded(max_steps=2, batch_size=8, lr=1e-3)
    train(settings, tmp_path / "one")
    in_two_processes(train, settings, tmp_path / "two")
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)


def test_toy_stage_has_its_own_keys(rewarded, recipe):
    described = load_recipe(rewarded(reward_short=2.0))
    assert load_recipe(described) == described
    assert "reward_short: 2.0" in dump_recipe(described)
    with pytest.raises(RecipeError, match=r"no meaning in a rewarded stage: `packing`.*takes reward_short"):
        load_recipe(rewarded(packing=False))
    with pytest.raises(RecipeError, match=r"`reward_short`, which is for stages with `objective: rewarded`"):
        load_recipe(recipe({"reward_short": 2.0}))
    with pytest.raises(RecipeError, match=r"stages\[0\]\.reward_shrt: unknown key\. Did you mean 'reward_short'"):
        load_recipe(rewarded(reward_shrt=2.0))


def test_dry_run_plans_a_toy_stage(rewarded):
    from rich.console import Console

    (plan,) = dry_run(rewarded(max_steps=3), console=Console(quiet=True))
    assert plan.steps == 3
    assert plan.tokens > 0


def test_unknown_objective_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"stages\[0\]\.objective: unknown objective\. Did you mean 'language'"):
        load_recipe(recipe({"objective": "langage", "train": EVERYTHING}))
