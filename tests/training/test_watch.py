"""Held-out data are looked at without changing the course; the best weights, or their average, are kept."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from medmvl.training.run import train
from medmvl.training.run_folder import read_log
from medmvl.training.trainer import StageTrainer
from medmvl.training.watch import Watch


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def watched(recipe):
    def make(**stage):
        evaluate = {"data": ["held"], "every": 2, "samples": 5, "generate": 1, "max_new_tokens": 3}
        evaluate |= stage.pop("evaluate", {})
        data = {"d": {"path": "d.jsonl"}, "held": {"path": "d.jsonl"}}
        return recipe({"data": ["d"], "max_steps": 5, "lr": 1e-3, "evaluate": evaluate} | stage, data=data)

    return make


def test_watching_changes_nothing_and_writes_losses_and_answers(watched, recipe, tmp_path):
    train(recipe({"max_steps": 5, "lr": 1e-3}), tmp_path / "plain")
    train(watched(), tmp_path / "run")
    plain, seen = (read_log(tmp_path / name / "log.jsonl") for name in ("plain", "run"))
    assert [row["loss"] for row in plain] == [row["loss"] for row in seen]
    losses = rows(tmp_path / "run" / "evaluation.jsonl")
    assert [(row["step"], row["data"]) for row in losses] == [(s, d) for s in (2, 4, 5) for d in ("held", "all")]
    assert losses[-1]["loss"] < losses[0]["loss"]
    samples = rows(tmp_path / "run" / "samples.jsonl")
    assert [row["step"] for row in samples] == [2, 4, 5]
    assert set(samples[0]) == {"stage", "step", "data", "id", "question", "answer", "prediction"}


def test_held_out_loss_is_the_plain_mean_over_supervised_tokens(watched, tmp_path, data_folder):
    from medmvl.data.dataset import SampleDataset
    from medmvl.models import MedMVLForConditionalGeneration
    from medmvl.processing import MedMVLProcessor

    folder = train(watched(), tmp_path / "run")
    model, processor = MedMVLForConditionalGeneration.from_pretrained(folder), MedMVLProcessor.from_pretrained(folder)
    data = SampleDataset(data_folder / "d.jsonl")
    with torch.no_grad():
        loss = model.eval()(**processor.collate([processor.encode(data[i], train=True) for i in range(5)])).loss
    assert rows(tmp_path / "run" / "evaluation.jsonl")[-1]["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_early_stopping_goes_back_to_the_best(watched, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 0.1])
    monkeypatch.setattr(Watch, "_evaluate", lambda *_: next(losses))
    settings = watched(max_steps=20, keep=1, save_every=3, evaluate={"patience": 2})
    folder = train(settings, tmp_path / "run")
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["step"] == 8
    best = load_file(tmp_path / "run" / "s0" / "checkpoints" / "checkpoint-4" / "trainable.safetensors")
    final = load_file(folder / "model.safetensors")
    assert all(torch.equal(final[name], value) for name, value in best.items())


def test_answers_are_judged_without_case_and_punctuation():
    from medmvl.training.answers import judged

    def row(answer, prediction):
        return {"answer": answer, "prediction": prediction}

    assert judged([row("Yes.", "yes"), row("No", "yes")]) == {"accuracy": 0.5, "f1": 0.5}
    half = judged([row("a large left nodule", "left nodule, left")])
    assert half == {"accuracy": 0.0, "f1": pytest.approx(4 / 7)}
    assert judged([row(None, "yes")]) == {}


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_a_metric_of_the_answers_can_decide_what_is_best(watched, tmp_path, monkeypatch, metric):
    values = iter([value for value in (0.1, 0.5, 0.4, 0.5, 0.9) for _ in ("held", "all")])
    monkeypatch.setattr("medmvl.training.watch.judged", lambda answers: {metric: next(values)})
    evaluate = {"patience": 2, "metric": metric, "generate": 1}
    folder = train(watched(max_steps=20, keep=1, evaluate=evaluate), tmp_path / "run")
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["step"] == 8  # 0.4 and another 0.5 are no better than 0.5
    best = load_file(tmp_path / "run" / "s0" / "checkpoints" / "checkpoint-4" / "trainable.safetensors")
    final = load_file(folder / "model.safetensors")
    assert all(torch.equal(final[name], value) for name, value in best.items())


def test_answers_are_judged_in_every_row_they_belong_to(watched, tmp_path):
    train(watched(max_steps=2, evaluate={"generate": 3}), tmp_path / "run")
    looks = rows(tmp_path / "run" / "evaluation.jsonl")
    assert [set(row) >= {"accuracy", "f1", "loss"} for row in looks] == [True, True]
    assert looks[0]["f1"] == looks[1]["f1"]


def test_a_metric_needs_generated_answers(watched, tmp_path):
    from medmvl.errors import RecipeError

    with pytest.raises(RecipeError, match="set `generate`"):
        train(watched(evaluate={"metric": "f1", "generate": 0}), tmp_path / "run")


def test_the_average_is_what_the_stage_ends_with_and_survives_a_kill(recipe, tmp_path, monkeypatch):
    settings = recipe({"max_steps": 6, "ema": 0.5, "save_every": 2})
    weights: list[dict[str, torch.Tensor]] = []
    original = StageTrainer.training_step

    def note(self, *args, **kwargs):
        weights.append({name: p.detach().clone() for name, p in self.applied.trainable().items()})
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", note)
        patch.setattr(StageTrainer, "settle", _noting_last(weights))
        final = load_file(train(settings, tmp_path / "a") / "model.safetensors")
    average = dict(weights[0])
    for step, values in enumerate(weights[1:], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * values[name] for name in average}
    for name in average:
        torch.testing.assert_close(final[name], average[name])

    def die(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", die)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "b")
    resumed = load_file(train(settings, tmp_path / "b", resume=True) / "model.safetensors")
    assert all(torch.equal(final[name], resumed[name]) for name in final)


def _noting_last(weights):
    original = StageTrainer.settle

    def settle(self, best):
        weights.append({name: p.detach().clone() for name, p in self.applied.trainable().items()})
        original(self, best)

    return settle
