"""Experiment trackers get the losses of the log, offline, with their real packages."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from medmvl.errors import MissingExtraError, RecipeError
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import train
from medmvl.training.run_folder import read_log


def run_with(*trackers: str) -> dict:
    return {"progress": False, "device": "cpu", "trackers": list(trackers)}


def test_missing_tracker_package_names_the_extra(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"medmvl\[wandb\]"):
        train(recipe({"max_steps": 1}, run=run_with("wandb")), tmp_path / "run")


def test_unknown_tracker_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"run\.trackers\[0\].*'tensorboard', 'wandb' or 'mlflow'"):
        load_recipe(recipe({}, run=run_with("comet")))
    with pytest.raises(RecipeError, match=r"Write `trackers: \[tensorboard\]`"):
        load_recipe(recipe({}, run={"tensorboard": True}))


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow (extra mlflow)")
def test_mlflow_store_holds_the_loss(recipe, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    train(recipe({"max_steps": 3}, run=run_with("mlflow")), tmp_path / "run")
    losses = [row["loss"] for row in read_log(tmp_path / "run" / "log.jsonl")]
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tiny")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "s0"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == list(enumerate(losses, start=1))


@pytest.mark.slow  # wandb starts a service process
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb (extra wandb)")
def test_wandb_writes_an_offline_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(recipe({"max_steps": 3}, run=run_with("wandb")), tmp_path / "run")
    (run,) = (tmp_path / "run" / "s0" / "wandb").glob("offline-run-*")
    (file,) = run.glob("*.wandb")
    assert b"train/loss" in file.read_bytes()
