"""Held-out data are looked at without changing the course; the best weights, or their average, are kept."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file

from medmvl.data.dataset import SampleDataset
from medmvl.data.formats import write_records
from medmvl.inference import GenerationOptions, Predictor
from medmvl.processing.templates import template_names
from medmvl.training.build import build, train_tokenizer
from medmvl.training.engine.callbacks import Callback
from medmvl.training.engine.devices import Engine, new_accelerator
from medmvl.training.engine.modes import evaluating
from medmvl.training.engine.trainable import Adaptation
from medmvl.training.objectives import LanguageObjective
from medmvl.training.objectives.base import Evaluation
from medmvl.training.objectives.language import LanguageSettings
from medmvl.training.recipe import PartSection
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import train
from medmvl.training.run_folder import read_log
from processes import killed_before_step

from .conftest import MODEL, turns


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
    assert [(row["step"], row["data"]) for row in losses] == [(s, "held") for s in (2, 4, 5)]
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
    evaluate = lambda *_: Evaluation([{"data": "all"}], metrics={"loss": next(losses)})  # noqa: E731
    monkeypatch.setattr(LanguageObjective, "evaluate", evaluate)
    settings = watched(max_steps=20, keep=1, save_every=3, evaluate={"patience": 2})
    folder = train(settings, tmp_path / "run")
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["step"] == 8
    best = load_file(tmp_path / "run" / "s0" / "checkpoints" / "checkpoint-4" / "trainable.safetensors")
    final = load_file(folder / "model.safetensors")
    assert all(torch.equal(final[name], value) for name, value in best.items())


def test_answers_are_judged_without_case_and_punctuation():
    from medmvl.training.objectives.answer_scores import score_answers

    def row(answer, prediction):
        return {"answer": answer, "prediction": prediction}

    assert score_answers([row("Yes.", "yes"), row("No", "yes")]) == {"accuracy": 0.5, "f1": 0.5}
    half = score_answers([row("a large left nodule", "left nodule, left")])
    assert half == {"accuracy": 0.0, "f1": pytest.approx(4 / 7)}
    assert score_answers([row(None, "yes")]) == {}


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_a_metric_of_the_answers_can_decide_what_is_best(watched, tmp_path, monkeypatch, metric):
    values = iter([value for value in (0.1, 0.5, 0.4, 0.5, 0.9) for _ in ("held", "all")])
    monkeypatch.setattr("medmvl.training.objectives.language.score_answers", lambda answers: {metric: next(values)})
    evaluate = {"patience": 2, "metric": metric, "generate": 1}
    folder = train(watched(max_steps=20, keep=1, evaluate=evaluate), tmp_path / "run")
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["step"] == 8  # 0.4 and another 0.5 are no better than 0.5
    best = load_file(tmp_path / "run" / "s0" / "checkpoints" / "checkpoint-4" / "trainable.safetensors")
    final = load_file(folder / "model.safetensors")
    assert all(torch.equal(final[name], value) for name, value in best.items())


def test_answers_are_judged_in_every_row_they_belong_to(watched, tmp_path):
    settings = watched(max_steps=2, evaluate={"data": ["held", "two"], "generate": 3})
    settings["data"]["two"] = {"path": "d.jsonl"}
    train(settings, tmp_path / "run")
    looks = rows(tmp_path / "run" / "evaluation.jsonl")
    assert [row["data"] for row in looks] == ["held", "two", "all"]
    assert all(set(row) >= {"accuracy", "f1", "loss"} for row in looks)
    assert looks[0]["f1"] == looks[1]["f1"] == looks[2]["f1"]


def test_a_metric_needs_generated_answers(watched, tmp_path):
    from medmvl.errors import RecipeError

    with pytest.raises(RecipeError, match="set `generate`"):
        train(watched(evaluate={"metric": "f1", "generate": 0}), tmp_path / "run")


def test_stage_ends_with_average_and_survives_kill(recipe, tmp_path):
    settings = recipe({"max_steps": 6, "ema": 0.5, "save_every": 2})
    weights: list[dict[str, torch.Tensor]] = []

    class NoteWeights(Callback):
        def on_step_begin(self, loop):
            trainable = loop.objective.trainable.trainable()
            weights.append({name: p.detach().clone() for name, p in trainable.items()})

        on_end = on_step_begin

    final = load_file(train(settings, tmp_path / "a", callbacks=[NoteWeights()]) / "model.safetensors")
    average = dict(weights[0])
    for step, values in enumerate(weights[1:], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * values[name] for name in average}
    for name in average:
        torch.testing.assert_close(final[name], average[name])

    with killed_before_step(3) as callbacks:
        train(settings, tmp_path / "b", callbacks=callbacks)
    resumed = load_file(train(settings, tmp_path / "b", resume=True) / "model.safetensors")
    assert all(torch.equal(final[name], resumed[name]) for name in final)


@pytest.fixture(scope="module")
def model_folder(data_folder, tmp_path_factory):
    """A model whose tokenizer has the end tokens of all templates, none of which is its own end token."""
    tokenizer = train_tokenizer(["yes no indeed Is there a nodule in it? On the left."] * 9, 400)
    tokens = ["<|end|>", "<end_of_turn>", "<|eot_id|>", "<|assistant|>", "<|user|>", "<|system|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens, "eos_token": "</s>"})
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder / "tokenizer")
    model = {"llm": {**MODEL["llm"], "tokenizer": str(folder / "tokenizer")}, "image": MODEL["image"]}
    stage = {"name": "s", "train": {"llm": "full"}, "lr": 1e-3}
    described = {"name": "t", "data_root": str(data_folder), "model": model, "data": {"d": {"path": "d.jsonl"}}}
    torch.manual_seed(0)
    built, processor = build(load_recipe(described | {"stages": [stage]}))
    torch.nn.init.normal_(built.language_model.lm_head.weight)  # answers of many different tokens
    built.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", [name for name in template_names() if name != "pretrain_image3d"])
def test_answers_in_training_equal_the_predictors(model_folder, tmp_path, template):
    PILImage.new("RGB", (20, 20), "gray").save(tmp_path / "i.png")
    rows = [{"id": f"r{i}", "conversations": turns("<image>\nIs it" + " so" * i, "yes")} for i in range(5)]
    write_records(tmp_path / "d.jsonl", [row | {"image": ["i.png"]} for row in rows])
    data = SampleDataset(tmp_path / "d.jsonl")
    predictor = Predictor.from_pretrained(model_folder, device="cpu", template=template)
    options = GenerationOptions(max_new_tokens=12)

    def answers():
        return predictor.generate([predictor.encode(data[i].as_question()) for i in range(5)], options)

    # The token that the first answer has at its fifth place changes places with the template's end token.
    stop = max(predictor.processor.end_token_ids(predictor.model.generation_config))
    head = predictor.model.language_model.lm_head.weight.data
    fifth = answers()[0].token_ids[4]
    head[[stop, fifth]] = head[[fifth, stop]]
    expected = answers()
    assert expected[0].token_ids[-1] == stop
    settings = LanguageSettings(eval_samples=5, eval_answers=5, max_new_tokens=12)
    adaptation = Adaptation("s", {"llm": PartSection()}, 1e-3)
    objective = LanguageObjective(predictor.model, predictor.processor, adaptation, settings, tmp_path)
    objective.adapt()
    optimizer = torch.optim.SGD(predictor.model.parameters())
    engine = Engine(new_accelerator("fp32", cpu=True), predictor.model, optimizer)
    with objective.training(), evaluating(predictor.model):
        found = objective.evaluate(engine, {"d": data})
    assert [row["prediction"] for row in found.samples] == [answer.text for answer in expected]
