"""Muon moves the matrices of linear layers, AdamW the rest; both live in one optimizer that is scheduled and resumed."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from medmvl.errors import MissingExtraError, RecipeError
from medmvl.training.acceleration import muon
from medmvl.training.acceleration.muon import MuonWithAdamW, hidden_matrices
from medmvl.training.engine.state import STATE_MARK
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import train
from medmvl.training.run_folder import read_log
from processes import in_two_processes, killed_before_step

from .conftest import CONNECTORS

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4, bias=False))


def optimizer_of(network, **changes):
    groups = [{"params": list(network.parameters()), "lr": 0.02, "weight_decay": 0.1} | changes]
    return MuonWithAdamW(groups, hidden_matrices(network), (0.9, 0.99))


def descend(network, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.arange(7)).square().mean().backward()
        optimizer.step()


def test_each_kind_moves_as_torchs_own_optimizer_moves_it(network):
    other = copy.deepcopy(network)
    descend(network, optimizer_of(network))
    matrices = [other[1].weight, other[3].weight]
    rest = [p for p in other.parameters() if p.ndim == 1 or p is other[0].weight]
    pair = (
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.02, weight_decay=0.1, betas=(0.9, 0.99)),
    )
    for _ in range(3):
        other.zero_grad()
        other(torch.arange(7)).square().mean().backward()
        for optimizer in pair:
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_stacks_of_any_size_move_alike(monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)), nn.Linear(8, 16), nn.Linear(16, 8))
    other = copy.deepcopy(network)
    for one, numbers in ((network, 2**22), (other, 130)):  # all five together; two at a time
        monkeypatch.setattr(muon, "_STACK_NUMBERS", numbers)
        optimizer = optimizer_of(one)
        for _ in range(3):
            optimizer.zero_grad()
            one(torch.eye(8)).square().mean().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_a_loaded_state_goes_on_as_the_saved_one(network):
    first = optimizer_of(network)
    descend(network, first)
    other, state = copy.deepcopy(network), copy.deepcopy(first.state_dict())
    second = optimizer_of(other, lr=9.0)
    second.load_state_dict(state)
    descend(network, first)
    descend(other, second)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_the_schedule_reaches_both(network):
    optimizer = optimizer_of(network)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(network.state_dict())
    descend(network, optimizer)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_matrix_without_a_gradient_stays(network):
    optimizer = optimizer_of(network)
    descend(network, optimizer)
    before = network[3].weight.clone()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)  # what a tower gets in a step without images
    optimizer.step()
    assert torch.equal(before, network[3].weight)


def test_a_shared_table_of_words_is_no_matrix(network):
    network[3].weight = network[0].weight = nn.Parameter(torch.randn(7, 8))
    assert [tuple(weight.shape) for weight in hidden_matrices(network)] == [(8, 6)]


def test_a_run_gives_momentum_to_matrices_and_moments_to_the_rest(recipe, tmp_path):
    train(recipe({"optimizer": "muon", "save_every": 2}), tmp_path / "run")
    state = load_file(tmp_path / "run" / "s0" / "checkpoints" / "checkpoint-2" / "optimizer.safetensors")
    kinds = {"momentum_buffer": set(), "exp_avg": set()}
    for key in state:
        name, _, value = key.rpartition(STATE_MARK)
        kinds.get(value, set()).add(name)
    assert any("q_proj.weight" in name for name in kinds["momentum_buffer"])
    assert any("embed_tokens" in name for name in kinds["exp_avg"])
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in kinds["momentum_buffer"])
    assert not kinds["momentum_buffer"] & kinds["exp_avg"]


def test_a_run_resumes_exactly(recipe, tmp_path):
    lora = {"train": {"llm": {"mode": "lora", "lora": {"r": 2}}, **CONNECTORS}}
    settings = recipe(
        {"optimizer": "muon", "max_steps": 4, "save_every": 2},
        lora | {"optimizer": "muon", "max_steps": 4, "save_every": 2},
    )
    train(settings, tmp_path / "whole")

    for stage in ("s0", "s1"):  # in the full stage, and in the one with adapters
        with killed_before_step(3, stage) as callbacks:
            train(settings, tmp_path / "run", resume=True, callbacks=callbacks)
    train(settings, tmp_path / "run", resume=True)
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "run")]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    weights, others = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(weights[key], others[key]) for key in weights)


def test_sharded_weights_are_refused(recipe, tmp_path):
    run = {"progress": False, "device": "cpu", "strategy": "fsdp"}
    with pytest.raises(RecipeError, match="optimizer: muon does not go with run.strategy"):
        load_recipe(recipe({"optimizer": "muon"}, run=run))


def test_two_processes_train_what_one_does(recipe, tmp_path):
    stage = {"optimizer": "muon", "batch_size": 8, "micro_batch_size": 4, "lr": 1e-3}
    train(recipe(stage), tmp_path / "one")
    in_two_processes(train, recipe(stage), tmp_path / "two")
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    assert [row["loss"] for row in logs[0]] == pytest.approx([row["loss"] for row in logs[1]], rel=1e-4)


def test_nothing_to_move_is_refused():
    table = nn.Sequential(nn.Embedding(3, 2))
    with pytest.raises(RecipeError, match="none of them trains"):
        MuonWithAdamW([{"params": list(table.parameters()), "lr": 0.1, "weight_decay": 0.0}], hidden_matrices(table))


def test_an_older_torch_is_told_before_the_first_stage(recipe, tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(MissingExtraError, match=r"torch 2\.9"):
        train(recipe({}, {"optimizer": "muon"}), tmp_path / "run")
    assert not (tmp_path / "run" / "s0").exists()
