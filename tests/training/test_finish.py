"""A finished stage holds what was trained: pieces and whole model write the same, and wrong weights are not published."""

from __future__ import annotations

import json

import pytest
import torch

from medmvl import MedMVLForConditionalGeneration
from medmvl.errors import CheckpointError, TrainingError
from medmvl.models import weight_writer
from medmvl.models.weights import Weights
from medmvl.training.engine.callbacks import Callback
from medmvl.training.engine.consolidate import write_consolidated
from medmvl.training.engine.finished import FinishedCheck
from medmvl.training.engine.state import BUFFERS, WEIGHTS, write_values
from medmvl.training.engine.trainable import Adaptation, TrainableModel
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import train

from .conftest import CONNECTORS, RESNET

LORA = {"llm": {"mode": "lora", "lora": {"r": 2}}, "image_encoder": {"mode": "lora", "lora": {"r": 2}}, **CONNECTORS}


@pytest.mark.parametrize(
    ("stage", "llm"),
    [
        ({}, {}),
        ({"train": LORA}, {"model_type": "qwen2"}),  # its layers have biases
        ({"train": LORA | {"llm": {"mode": "lora", "lora": {"r": 2, "dora": True}}}}, {}),
        ({"train": LORA | {"llm": {"mode": "lora", "lora": {"r": 2, "rslora": True}}}, "save_dtype": "bfloat16"}, {}),
        ({"train": CONNECTORS, "precision": "bf16"}, {}),
        ({"train": {"image_encoder": "full", **CONNECTORS}}, "resnet"),  # its batch norm keeps statistics
    ],
    ids=["full", "lora", "dora", "rslora-bf16", "connectors-in-bf16", "batch-norm"],
)
def test_put_together_from_pieces_it_is_the_same(recipe, tmp_path, monkeypatch, stage, llm):
    settings = recipe({"max_steps": 1, "lr": 1e-2, **stage})
    if llm == "resnet":
        settings["model"]["image"]["encoder"] = RESNET
    else:
        settings["model"]["llm"]["config"] |= llm
    run, pieces, together = (tmp_path / name for name in ("run", "pieces", "together"))
    pieces.mkdir()
    together.mkdir()

    class WritePieces(Callback):
        def on_end(self, loop):
            loop.trained.write_weights(pieces, WEIGHTS)
            if buffers := loop.objective.trainable.buffers():
                write_values(pieces, BUFFERS, buffers)

    monkeypatch.setattr(weight_writer.write_weights, "__defaults__", (50_000,))  # several shards
    train(settings, run, callbacks=[WritePieces()])
    section = load_recipe(settings).stages[0]
    write_consolidated(together, run / "init", pieces, Adaptation.of(section), section.save_dtype)
    expected, found = Weights(run / "s0"), Weights(together)
    assert len(found.files) > 1
    assert set(found) == set(expected)
    for name in found:
        assert torch.equal(found[name], expected[name]), name
        assert found.dtype(name) == expected.dtype(name)
    for file in ("config.json", "generation_config.json"):
        assert json.loads((together / file).read_text()) == json.loads((run / "s0" / file).read_text())
    MedMVLForConditionalGeneration.from_pretrained(together)


def test_pieces_of_another_model_are_refused(recipe, tmp_path):
    settings = recipe({"max_steps": 1})
    train(settings, tmp_path / "run")
    write_values(tmp_path, WEIGHTS, {"nothing": torch.zeros(1)})
    (tmp_path / "together").mkdir()
    start = tmp_path / "start"
    start.mkdir()
    for file in ("config.json", "generation_config.json"):
        (start / file).write_text((tmp_path / "run" / "init" / file).read_text())
    write_values(start, "model", {"language_model.model.norm.weight": torch.zeros(32)})
    adaptation = Adaptation.of(load_recipe(settings).stages[0])
    with pytest.raises(CheckpointError, match="missing"):
        write_consolidated(tmp_path / "together", start, tmp_path, adaptation, "float32")


def test_wrong_frozen_weights_are_not_published(recipe, tmp_path, monkeypatch):
    """A bf16 stage that gives one frozen matrix of the LLM back with another sign stops before it writes anything."""
    restore = TrainableModel.restore

    def restore_wrongly(self):
        restore(self)
        self.model.language_model.get_submodule("model.layers.0.self_attn.o_proj").weight.data.neg_()

    monkeypatch.setattr(TrainableModel, "restore", restore_wrongly)
    with pytest.raises(TrainingError, match="bf16 to fp32"):
        train(recipe({"max_steps": 1, "train": CONNECTORS, "precision": "bf16"}), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("rows", "value", "half", "accepted"),
    [
        (1, 40.0, True, True),  # a massive activation that came with the rounding, as in SmolLM2-135M
        (1, 40.0, False, False),
        (5, 40.0, True, False),
        (1, float("nan"), True, False),
        (40, 0.1, True, True),
        (40, 0.1, False, False),
    ],
)
def test_rounding_to_half_precision_may_turn_single_rows(rows, value, half, accepted):
    expected = torch.linspace(-1, 1, 40 * 8).reshape(40, 8)
    found = expected.clone()
    found[:rows] += value
    check = FinishedCheck("s")
    if accepted:
        check.compare("c", found, expected, half=half)
        assert check.differences["c"] == pytest.approx(value)
    else:
        with pytest.raises(TrainingError, match="'s'"):
            check.compare("c", found, expected, half=half)


def test_rows_that_half_precision_turned_are_not_called_rounding(capsys):
    expected = torch.linspace(-1, 1, 40 * 8).reshape(40, 8)
    check = FinishedCheck("s")
    check.compare("written", expected, expected, half=True)
    check.say()
    assert "they differ by no more than rounding (" in capsys.readouterr().err
    found = expected.clone()
    found[0] += 40
    check.compare("written", found, expected, half=True)
    check.say()
    assert "rounding, but for 2.5% of them, as half precision allows (" in capsys.readouterr().err
