"""A checkpoint's card says what is known, says what is not stated, and invents nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess

import pytest
import yaml
from huggingface_hub import ModelCard
from tests.models import zoo
from typer.testing import CliRunner

from medmvl.cards import card_text
from medmvl.cards.facts import DEFAULTS
from medmvl.cards.training_data import base_of, collect_training_data
from medmvl.checkpoints import inspect_folder
from medmvl.cli.main import app
from medmvl.data.synthetic import LICENSE, write_note
from medmvl.experiments.quickstart import PRETRAINED_LLM
from medmvl.models import MedMVLConfig, MedMVLForConditionalGeneration
from medmvl.processing.stored_prompts import read_prompts
from medmvl.training.recipe import Recipe
from medmvl.training.recipe.parts import LoRASection
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


def tiny_resnet_model():
    """Return a model whose encoder has batch norms, and so buffers."""
    tower = {"encoder": zoo.encoder("resnet")}
    return MedMVLForConditionalGeneration(MedMVLConfig(text_config=zoo.llm("llama"), towers={"image": tower}))


@pytest.fixture
def checkpoint(recipe, tmp_path):
    return train(recipe({"max_steps": 1}), tmp_path / "run")


def end_of(folder):
    """Return an absolute path as cards show it."""
    return f"…/{folder.parent.name}/{folder.name}"


def call(*arguments):
    return CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])


def test_a_finished_stage_has_a_card_of_what_is_known(checkpoint, data_folder):
    card = ModelCard((checkpoint / "README.md").read_text())
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.license is None
    digest = hashlib.sha256((data_folder / "d.jsonl").read_bytes()).hexdigest()
    records = len((data_folder / "d.jsonl").read_text().splitlines())
    assert f"| d | not recorded | not recorded | {records} | not recorded | s0 | {digest} |" in card.text
    assert "| LLM | architecture llama, width 32, 2 layers |" in card.text
    assert "; 1 steps |" in card.text
    assert "Seed of the recipe: 3." in card.text
    assert "llm (full)" in card.text
    assert "**Not stated by the developer**: developer, contact, license, release stage, intended use," in card.text
    assert "checkpoint card DIR --statements FILE" in card.text
    assert "Intended use" not in card.text
    assert "read by default" not in card.text
    assert "Not evaluated" in card.text
    assert "synthetic" not in card.text.lower()
    assert "Trained before" not in card.text


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
    assert f"| Started from | {end_of(base)} (SHA-256 of the weights {digest}) |" in card_of(base).text
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
    assert "**Not stated by the developer**: contact, release stage," in card.text
    assert "An interval without width" not in card.text
    assert "| closed_accuracy | 8 | 0.750 [0.50, 0.90] | 0.500 [0.50, 0.90] | +0.250 [+0.10, +0.40] |" in card.text


def test_base_stands_beside_the_scores(card_of, checkpoint, tmp_path):
    assert "Before this training" not in card_of("somebody/model").text
    before = json.loads(json.dumps(RESULTS))
    before["benchmarks"]["own"]["model"]["closed_accuracy"]["value"] = 0.5
    for name, content in (("results", RESULTS), ("before", before)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    results, base = ("--results", tmp_path / "results.json"), ("--base-results", tmp_path / "before.json")
    assert call("card", checkpoint, *results).exit_code == 0
    assert "What somebody/model scored before this training is not given" in (checkpoint / "README.md").read_text()
    assert call("card", checkpoint, *results, *base).exit_code == 0
    text = (checkpoint / "README.md").read_text()
    assert "| own | closed_accuracy | 8 | 0.500 [0.50, 0.90] | 0.750 [0.50, 0.90] | +0.250 |" in text
    assert "is not given" not in text
    assert "Give both" in str(call("card", checkpoint, *base).exception)
    before["benchmarks"]["own"]["model"]["closed_accuracy"]["n"] = 9
    (tmp_path / "before.json").write_text(json.dumps(before))
    assert "same questions" in str(call("card", checkpoint, *results, *base).exception)


def test_model_from_parts_has_no_scores_before(checkpoint, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert call("card", checkpoint, "--results", tmp_path / "results.json").exit_code == 0
    assert "before this training" not in (checkpoint / "README.md").read_text()


@pytest.mark.parametrize("of", ["records", "data set"])
def test_reading_that_is_not_the_default_is_shown(checkpoint, tmp_path, data_folder, of):
    own = shutil.copytree(data_folder, tmp_path / "own")
    rows = [json.loads(line) for line in (own / "d.jsonl").read_text().splitlines()]
    options = {"gaps": "fill", "series": "1.2.840.1"}
    if of == "records":
        rows[0]["read"] = options
        (own / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"d": {"path": "d.jsonl", **({"read": options} if of == "data set" else {})}}
    found = collect_training_data({"data_root": str(own), "data": data, "stages": [{"name": "s"}]}).data[0]
    count = 1 if of == "records" else len(rows)
    texts = [f"`gaps: fill` (missing slices are interpolated): {count} records", f"`series` given: {count} records"]
    assert found.reading == "; ".join(texts)
    stored = checkpoint / "recipe.yaml"
    values = {**yaml.safe_load(stored.read_text()), "data_root": str(own), "data": data}
    stored.unlink()
    stored.write_text(yaml.safe_dump(values))
    assert f"The files of d were not read by default: {found.reading}." in card_text(checkpoint)
    assert "1.2.840.1" not in card_text(checkpoint)  # it identifies a study


def test_license_and_title_come_from_the_converters_report(recipe, tmp_path, data_folder):
    own = shutil.copytree(data_folder, tmp_path / "own")
    report = {"title": "Phantoms", "license": "CC0", "records": {"d": 9}, "synthetic": True}
    (own / "report.json").write_text(json.dumps(report))
    records = len((own / "d.jsonl").read_text().splitlines())
    text = (train(recipe({"max_steps": 1}, data_root=str(own)), tmp_path / "run") / "README.md").read_text()
    assert f"| d | Phantoms | CC0 | {records} | not recorded | s0 |" in text
    assert "**Synthetic phantoms are among its training data: the data set d.**" in text


def test_base_hands_its_synthetic_data_down(recipe, tmp_path, data_folder):
    drawn = shutil.copytree(data_folder, tmp_path / "drawn")
    write_note(drawn, "SLAKE")
    first = train(recipe({"max_steps": 1}, data_root=str(drawn)), tmp_path / "first")
    card = ModelCard((first / "README.md").read_text())
    assert "synthetic-data" in card.data.tags
    assert f"| d | Synthetic phantoms in the layout of SLAKE | {LICENSE} |" in card.text
    shutil.rmtree(drawn)  # the base itself says what it was trained on
    base = {"from": str(first)}
    second = train(recipe({"max_steps": 1}, model=base), tmp_path / "second")
    third = train(recipe({"max_steps": 1}, model={"from": str(second)}), tmp_path / "third")
    for model in (second, third):
        card = ModelCard((model / "README.md").read_text())
        assert "synthetic-data" in card.data.tags
        assert f"**What it started from was trained on synthetic phantoms: {end_of(first)}.**" in card.text
        assert str(tmp_path) not in card.text  # an absolute path may name a person
        assert f"| {end_of(first)}: tiny | d | Synthetic phantoms in the layout of SLAKE | {LICENSE} |" in card.text
        assert read_prompts(model).synthetic
    assert f"| {end_of(second)}: tiny | d | not recorded | not recorded |" in card.text
    shutil.rmtree(tmp_path / "second")
    assert call("card", third).exit_code == 0
    assert "synthetic-data" in ModelCard((third / "README.md").read_text()).data.tags


@pytest.mark.parametrize("part", ["llm", "image", "volume", "wrapped", "text", "stage"])
def test_every_part_can_hand_data_down(tmp_path, part):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\ntags: [synthetic]\n---\n# Small base\n")
    start = {"init_from": str(base)}
    stage = {"name": "s", "contrastive": {"text": start}} if part == "text" else {"name": "s"}
    stage |= {"from": str(base)} if part == "stage" else {}
    model = {
        "llm": {"llm": start},
        "wrapped": {"volume": {"encoder": {"name": "slicewise", "encoder": start}}},
    }.get(part, {part: {"encoder": start}} if part in ("image", "volume") else {})
    found = collect_training_data({"model": model, "stages": [stage]}, "s")
    assert [(one.name, one.title, one.license) for one in found.base] == [(str(base), "Small base", "mit")]
    assert found.synthetic


def test_base_that_says_nothing_is_not_recorded(card_of, tmp_path):
    (tmp_path / "base").mkdir()
    card = card_of(tmp_path / "base")
    assert f"| {end_of(tmp_path / 'base')} | {' | '.join(5 * ['not recorded'])} |" in card.text
    assert "synthetic-data" not in card.data.tags


def test_checkpoint_without_stored_data_is_read_by_its_recipe(recipe, tmp_path, data_folder):
    drawn = shutil.copytree(data_folder, tmp_path / "drawn")
    write_note(drawn, "SLAKE")
    first = train(recipe({"max_steps": 1}, data_root=str(drawn)), tmp_path / "first")
    (first / "training_data.json").unlink()
    found = collect_training_data({"model": {"from": str(first)}, "stages": [{"name": "s"}]})
    assert [entry.name for entry in found.base[0].data] == ["d"]
    (first / "recipe.yaml").unlink()
    (found,) = collect_training_data({"model": {"from": str(first)}, "stages": [{"name": "s"}]}).base
    assert found.data == ()
    assert found.synthetic  # its card and its questions still say so


def test_only_stages_that_it_builds_on_count():
    recipe = {
        "model": {"llm": {"init_from": "owner/llm"}},
        "data": {name: {"path": f"{name}.jsonl"} for name in ("one", "two", "val")},
        "stages": [
            {"name": "a", "data": {"one": 1}},
            {"name": "b", "from": "owner/other", "data": {"two": 1}, "evaluate": {"data": ["val"]}},
        ],
    }
    found = collect_training_data(recipe, "b")
    assert [entry.name for entry in found.data] == ["two"]
    assert [entry.name for entry in found.held_out] == ["val"]
    assert [base.name for base in found.base] == ["owner/other"]


def test_records_and_patients_are_counted(tmp_path):
    rows = [{"id": str(n), "task": "vqa" if n else "report", "patient": f"p{n // 2}"} for n in range(5)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"data_root": str(tmp_path), "data": {"d": {"path": "d.jsonl"}}, "stages": [{"name": "s"}]}
    (entry,) = collect_training_data(recipe).data
    assert (entry.records, entry.patients) == (5, 3)
    recipe["data"]["d"]["tasks"] = ["report"]
    (entry,) = collect_training_data(recipe).data
    assert (entry.records, entry.patients) == (1, 1)


def test_lora_is_shown_with_rank_and_alpha(checkpoint):
    stored = checkpoint / "recipe.yaml"
    values = yaml.safe_load(stored.read_text())
    values["stages"][0]["train"] = {"llm": {"mode": "lora", "lora": {"r": 8}}}
    stored.unlink()
    stored.write_text(yaml.safe_dump(values))
    assert call("card", checkpoint).exit_code == 0
    assert "llm (lora, rank 8, alpha 32)" in (checkpoint / "README.md").read_text()


def test_defaults_of_the_card_are_those_of_recipes():
    lora = LoRASection()
    assert {"seed": Recipe.model_fields["seed"].default, "r": lora.r, "alpha": lora.alpha} == DEFAULTS


def test_buffers_are_no_parameters(tmp_path):
    model = tiny_resnet_model()
    model.save_pretrained(tmp_path)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert sum(part.values for part in inspect_folder(tmp_path).parts.values()) == count
    assert f"| Parameters | {count:,} |" in card_text(tmp_path)


def test_results_say_how_much_they_are_of(checkpoint, tmp_path):
    results = json.loads(json.dumps(RESULTS))
    entry = results["benchmarks"]["own"]
    entry |= {"headline": "token_f1", "synthetic": True}
    entry["model"] = {"token_f1": SCORE | {"n": 8}, "closed_accuracy": {"value": 1.0, "n": 6, "ci95": [1.0, 1.0]}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert call("card", checkpoint, "--results", tmp_path / "results.json").exit_code == 0
    card = ModelCard((checkpoint / "README.md").read_text())
    assert [one.metric_type for one in card.data.eval_results] == ["closed_accuracy", "token_f1"]
    assert card.data.eval_results[0].dataset_name == "Own records (8 records of 4 patients, synthetic data)"
    assert "An interval without width" in card.text


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
        ("developr: x", "unknown key 'developr'. Did you mean 'developer'"),
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


def test_shipped_llm_says_what_it_was_trained_on():
    base = base_of(str(PRETRAINED_LLM))
    assert [(entry.records, entry.license, entry.synthetic) for entry in base.data] == [
        (30_000, LICENSE, True),
        (12_000, LICENSE, True),
    ]


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
