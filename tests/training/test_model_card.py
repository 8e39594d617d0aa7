"""A checkpoint's card says what is known, says what is not stated, and invents nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess

import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.training.run import train

SCORE = {"value": 0.75, "n": 8, "ci95": [0.5, 0.9]}
RESULTS = {
    "format": 1,
    "benchmarks": {
        "own": {
            "title": "Own records",
            "about": "Held-out records.",
            "headline": "closed_accuracy",
            "model": {"closed_accuracy": SCORE},
            "controls": {"blank": {"closed_accuracy": SCORE | {"value": 0.5}}},
            "image": {"closed_accuracy": {"gain": 0.25, "ci95": [0.1, 0.4]}},
            "counts": {"records": 8, "patients": 4, "empty_predictions": 0},
        }
    },
}


@pytest.fixture
def checkpoint(recipe, tmp_path):
    return train(recipe({"max_steps": 1}), tmp_path / "run")


def call(*arguments):
    return CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])


def test_a_finished_stage_has_a_card_of_what_is_known(checkpoint, data_folder):
    card = ModelCard((checkpoint / "README.md").read_text())
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.license is None
    digest = hashlib.sha256((data_folder / "d.jsonl").read_bytes()).hexdigest()
    assert f"| d | not recorded | not recorded | not recorded | s0 | {digest} |" in card.text
    assert "| LLM | llama, width 32, 2 layers |" in card.text
    assert "llm (full)" in card.text
    assert "**Intended use**: Not stated by the developer." in card.text
    assert "Not evaluated" in card.text
    assert "Synthetic phantoms" not in card.text


@pytest.fixture
def card_of(checkpoint):
    """Return the card of a checkpoint whose recipe starts from a base."""

    def write(base: object) -> ModelCard:
        file = checkpoint / "recipe.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "model": {"from": str(base)}}))
        assert call("card", checkpoint).exit_code == 0
        return ModelCard((checkpoint / "README.md").read_text())

    return write


def test_base_is_named_with_the_hash_of_its_weights(card_of, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert f"| Started from | {base} (SHA-256 of the weights {digest}) |" in card_of(base).text
    (base / "second.safetensors").write_bytes(b"more")
    listed = subprocess.run(["sha256sum", "model.safetensors", "second.safetensors"], cwd=base, capture_output=True)
    assert f"weights {hashlib.sha256(listed.stdout).hexdigest()})" in card_of(base).text


def test_folder_is_no_base_model_of_the_hub(card_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    assert card_of("runs/base").data.base_model is None
    card = card_of("somebody/model")
    assert card.data.base_model == ["somebody/model"]
    assert "| Started from | somebody/model |" in card.text


def test_hub_name_is_given_with_its_revision(card_of, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--somebody--model" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert f"| Started from | somebody/model (revision {'a' * 40}) |" in card_of("somebody/model").text


def test_results_and_statements_are_added(checkpoint, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "stated.yaml").write_text("developer: A | B\nlicense: apache-2.0\nlanguage: [en, zh]\n")
    done = call("card", checkpoint, "--results", tmp_path / "results.json", "--statements", tmp_path / "stated.yaml")
    assert done.exit_code == 0, done.output
    card = ModelCard((checkpoint / "README.md").read_text())
    assert "| Developer | A \\| B |" in card.text
    assert card.data.license == "apache-2.0"
    assert card.data.language == ["en", "zh"]
    assert card.data.eval_results[0].metric_value == 0.75
    assert "| closed_accuracy | 8 | 0.750 [0.50, 0.90] | 0.500 [0.50, 0.90] | +0.250 [+0.10, +0.40] |" in card.text


def test_license_and_title_come_from_the_converters_report(recipe, tmp_path, data_folder):
    own = shutil.copytree(data_folder, tmp_path / "own")
    report = {"title": "Phantoms", "license": "CC0", "records": {"d": 9}, "synthetic": True}
    (own / "report.json").write_text(json.dumps(report))
    text = (train(recipe({"max_steps": 1}, data_root=str(own)), tmp_path / "run") / "README.md").read_text()
    assert "| d | Phantoms | CC0 | 9 | s0 |" in text
    assert "**Synthetic phantoms are among its training data: d.**" in text


def test_the_text_of_somebody_else_is_not_replaced(checkpoint):
    (checkpoint / "README.md").unlink()
    (checkpoint / "README.md").write_text("My own words.")
    assert call("card", checkpoint).exit_code != 0
    assert (checkpoint / "README.md").read_text() == "My own words."
    assert call("card", checkpoint, "--force").exit_code == 0
    assert "My own words" not in (checkpoint / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("developr: x", "Did you mean 'developer'"),
        ("language: 3", "language"),
        ("- a", "must hold keys"),
        ("a: [", "YAML"),
    ],
)
def test_a_wrong_statement_is_named(checkpoint, tmp_path, text, words):
    (tmp_path / "stated.yaml").write_text(text)
    done = call("card", checkpoint, "--statements", tmp_path / "stated.yaml")
    assert done.exit_code != 0
    assert words in str(done.exception) + done.output


def test_push_lists_a_checkpoints_files_and_nothing_else(checkpoint):
    (checkpoint / "checkpoints").mkdir(exist_ok=True)
    (checkpoint / ".secret.json").write_text("{}")
    (checkpoint / "predictions.jsonl").write_text("{}")
    done = call("push", checkpoint, "owner/name", "--dry-run")
    assert done.exit_code == 0, done.output
    listed = {line.split()[0] for line in done.output.splitlines() if line.startswith("  ")}
    assert {"README.md", "config.json", "model.safetensors", "recipe.yaml", "processor_config.json"} <= listed
    assert not {".secret.json", "predictions.jsonl"} & listed
    assert "Nothing was uploaded" in done.output


def test_push_refuses_a_folder_without_a_card_or_with_damage(checkpoint):
    (checkpoint / "README.md").unlink()
    assert "checkpoint card" in str(call_error("push", checkpoint, "owner/name", "--dry-run"))
    assert call("card", checkpoint).exit_code == 0
    recipe_file = checkpoint / "recipe.yaml"
    changed = recipe_file.read_text() + "# changed\n"
    recipe_file.unlink()  # a hard link of the stage's
    recipe_file.write_text(changed)
    assert yaml.safe_load(changed)["name"] == "tiny"
    assert "recipe.yaml has changed" in str(call_error("push", checkpoint, "owner/name", "--dry-run"))


def call_error(*arguments):
    done = CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])
    assert done.exit_code != 0
    return f"{done.exception} {done.output}"
