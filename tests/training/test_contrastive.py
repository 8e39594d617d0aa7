"""The contrastive stage: exact over micro-batches, processes and interruptions; it teaches an encoder to find reports."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file

from medmvl.data.formats import read_records, write_records
from medmvl.errors import DataError, RecipeError
from medmvl.models import MedMVLForConditionalGeneration
from medmvl.models.contrastive import DualEncoder
from medmvl.processing.pairs import PairProcessor
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import TrainingInterruptedError, train
from medmvl.training.run_folder import read_log
from medmvl.training.trainer import StageTrainer

from .conftest import MODEL, turns
from .test_distributed import in_two_processes

TEXT = {
    "config": {
        "model_type": "bert",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
}
WORDS = ["nodule", "effusion", "normal", "emphysema", "pacemaker"]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Images and volumes with reports, some of them equal."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for kind, key, placeholder in (("image", "image", "<image>"), ("volume", "image3d", "<image3d>")):
        rows = []
        for i in range(14):
            if kind == "image":
                PILImage.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).save(folder / f"{i}.png")
            else:
                np.save(folder / f"{i}.npy", rng.integers(-900, 900, (6, 20, 20)).astype(np.int16))
            text = f"{WORDS[i % 5]} " * (1 + i % 3) + f"number {i if i % 4 else 0}"
            row = {"id": f"r{i}", "conversations": turns(f"{placeholder}\nReport?", text), "task": "report"}
            rows.append(row | {key: [f"{i}.{'png' if kind == 'image' else 'npy'}"]})
        rows.append(rows[0] | {"id": "q", "conversations": turns(f"{placeholder}\nNodule?", "yes"), "task": "vqa"})
        write_records(folder / f"{kind}.jsonl", rows)
    return folder


def stage_of(modality, **changes):
    contrastive = {"text": TEXT, "dim": 8} | changes.pop("contrastive", {})
    defaults = {"objective": "contrastive", "train": {f"{modality}_encoder": "full"}, "contrastive": contrastive}
    return defaults | {"data": [modality], "lr": 1e-3, "batch_size": 8, "max_steps": 3} | changes


@pytest.fixture
def contrastive(recipe, pairs):
    """Return a function that makes a recipe of the given stages on the pairs."""

    def make(*stages, **changes):
        data = {m: {"path": f"{m}.jsonl", "tasks": ["report"]} for m in ("image", "volume")}
        return recipe(*stages, **{"data_root": str(pairs), "data": data} | changes)

    return make


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_course(one, other, tolerance=1e-5):
    first, second = read_log(one / "log.jsonl"), read_log(other / "log.jsonl")
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=tolerance)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=10 * tolerance)
        assert [a[key] for key in ("step", "tokens", "supervised")] == [b[k] for k in ("step", "tokens", "supervised")]


# --- exact, however it is shared out ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_eight_at_once_equal_threes_and_two_processes(contrastive, tmp_path, loss):
    def settings(**changes):
        return contrastive(stage_of("image", contrastive={"loss": loss, "pooling": "attention"}, **changes))

    train(settings(), tmp_path / "once")
    train(settings(micro_batch_size=3), tmp_path / "threes")
    in_two_processes(lambda: train(settings(), tmp_path / "two"))
    in_two_processes(lambda: train(settings(micro_batch_size=2), tmp_path / "two-twos"))
    for other in ("threes", "two", "two-twos"):
        assert_same_course(tmp_path / "once", tmp_path / other)
        for folder in ("model", "s0/encoder"):
            weights, others = (load_file(tmp_path / run / folder / "model.safetensors") for run in ("once", other))
            for key in weights:
                torch.testing.assert_close(weights[key], others[key], rtol=1e-3, atol=2e-4)


def test_the_gradient_is_that_of_the_loss_written_plainly(contrastive, tmp_path, monkeypatch):
    from medmvl.training import contrastive_trainer

    seen = {}

    def note(self, model, grad_norm=None):
        seen["gradients"] = {name: p.grad.clone() for name, p in self.applied.trainable().items()}
        return original(self, model, grad_norm)

    original = StageTrainer._get_grad_norm
    monkeypatch.setattr(contrastive_trainer.ContrastiveTrainer, "_get_grad_norm", note)
    batches = []
    collect = contrastive_trainer.PairBatches.__call__
    monkeypatch.setattr(contrastive_trainer.PairBatches, "__call__", lambda *a: batches.append(collect(*a)) or batches[-1])
    stage = stage_of("volume", max_steps=1, batch_size=6, micro_batch_size=2, max_grad_norm=0)
    train(contrastive(stage), tmp_path / "run")
    dual = DualEncoder.from_pretrained(tmp_path / "run" / "s0" / "checkpoints" / "start").train()
    media = torch.cat([dual.encode_media(batch["pixels"]) for batch in batches])
    texts = torch.cat([dual.encode_texts(batch["input_ids"], batch["attention_mask"]) for batch in batches])
    keys = torch.cat([batch["text_key"] for batch in batches])
    same = keys[:, None] == keys[None, :]
    target = same / same.sum(1, keepdim=True)
    logits = media @ texts.T * dual.head.log_scale.exp()
    assert float(dual.head.log_scale.detach().exp()) == pytest.approx(1 / 0.07)
    cross = torch.nn.functional.cross_entropy
    loss = (cross(logits, target) + cross(logits.T, target)) / 2
    loss.backward()
    assert read_log(tmp_path / "run" / "log.jsonl")[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    expected = {name: p.grad for name, p in dual.named_parameters() if p.grad is not None}
    scale = max(float(g.abs().max()) for g in expected.values())
    learned = set(seen["gradients"])
    assert learned == set(expected)
    assert any(name.startswith("towers.volume.encoder") for name in learned)
    for name in learned:
        assert float((seen["gradients"][name] - expected[name]).abs().max()) <= 1e-5 * scale, name
        assert name == "text_encoder.embeddings.token_type_embeddings.weight" or expected[name].any()
