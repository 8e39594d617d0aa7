"""Both published tables come out of one recipe file each, from the data sets as they are distributed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.errors import EvaluationError, MedMVLError, RecipeError
from medmvl.evaluation.published import published_tables
from medmvl.experiments.evaluation_recipe import load_evaluation_recipe
from medmvl.files import iter_jsonl, read_json
from medmvl.training.recipe_io import load_recipe
from medmvl.training.shipped import find_recipe, shipped_evaluations
from miniatures import write_table1, write_table2

TRAINING = {"evaluate-table1": "medm-vl-2d", "evaluate-table2": "medm-vl-ct-chest-3d"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """The sources of both tables, read only."""
    root = tmp_path_factory.mktemp("published")
    return {"evaluate-table1": write_table1(root / "1"), "evaluate-table2": write_table2(root / "2")}


@pytest.fixture
def data(sources, tmp_path):
    """A copy of the sources of a table."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(sources[name], tmp_path / "data"))

    return copied


def evaluate(*words):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def said(outcome) -> str:
    """Return the message of a failed command."""
    assert isinstance(outcome.exception, MedMVLError), (outcome.output, outcome.exception)
    return str(outcome.exception)


@pytest.mark.parametrize("name", TRAINING)
def test_dry_run_converts_and_checks_every_column(name, data, tmp_path):
    root = data(name)
    outcome = evaluate("--recipe", name, "--dry-run", "--data-root", root, "--out", tmp_path / "out")
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    wanted = {
        one
        for entry in load_evaluation_recipe(find_recipe(Path(name), evaluation=True)).data.values()
        for one in entry.benchmarks
    }
    counted = {
        row.split()[0]: int(row.split()[1]) for row in outcome.output.splitlines() if re.match(r"\S+ +\d+ ", row)
    }
    assert set(counted) == wanted
    assert all(counted.values())
    assert not (tmp_path / "out").exists()
    again = evaluate("--recipe", name, "--dry-run", "--data-root", root, "--out", tmp_path / "out")
    assert again.output.count("converted already") == len(
        set(re.findall(r"^(\S+): converted to", outcome.output, re.M))
    )


@pytest.mark.parametrize("name", TRAINING)
def test_table_is_filled_in_every_column(name, data, tmp_path, model_folder):
    words = (
        "--recipe",
        name,
        "--model",
        model_folder,
        "--data-root",
        data(name),
        "--max-new-tokens",
        2,
        "--out",
        tmp_path / "out",
    )
    outcome = evaluate(*words)
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    entries = read_json(tmp_path / "out" / "results.json")["benchmarks"]
    tables = [table for table in published_tables() if set(table.columns.values()) <= set(entries)]
    assert len(tables) == (2 if name == "evaluate-table1" else 1)
    text = (tmp_path / "out" / "table.md").read_text()
    for table in tables:
        assert table.title in text
    own = [row for row in text.splitlines() if row.startswith("| **this run")]
    assert len(own) == 2
    assert not any("–" in row.split("|")[2:-2] for row in own)


def test_rerun_answers_only_what_is_missing(data, tmp_path, model_folder):
    root = data("evaluate-table1")
    words = ("--recipe", "evaluate-table1", "--model", model_folder, "--data-root", root, "--max-new-tokens", 2)
    first = evaluate(*words, "--benchmark", "slake-vqa", "--out", tmp_path / "out")
    assert first.exit_code == 0, (first.output, first.exception)
    file = tmp_path / "out" / "predictions" / "slake-vqa.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join(rows[:-1]))  # as a kill leaves it
    before = file.stat().st_ino
    shutil.rmtree(root / "raw" / "path-vqa")
    rest = [word for name in ("medmnist-derma", "slake-vqa", "slake-refer") for word in ("--benchmark", name)]
    second = evaluate(*words, *rest, "--out", tmp_path / "out")
    assert second.exit_code == 0, (second.output, second.exception)
    assert file.stat().st_ino == before
    assert file.read_text() == "".join(rows)
    assert len(read_json(tmp_path / "out" / "results.json")["benchmarks"]) == 3


def test_failed_benchmark_does_not_stop_others(data, tmp_path, model_folder):
    root = data("evaluate-table1")
    (tmp_path / "out" / "predictions").mkdir(parents=True)
    (tmp_path / "out" / "predictions" / "medpix.jsonl").write_text("{}\n")  # begun by something else
    words = ["--recipe", "evaluate-table1", "--model", model_folder, "--data-root", root, "--max-new-tokens", 2]
    names = [word for name in ("medpix", "mimic-cxr") for word in ("--benchmark", name)]
    outcome = evaluate(*words, *names, "--out", tmp_path / "out")
    assert "1 of 2 benchmarks" in said(outcome)
    assert "medpix:" in said(outcome)
    assert set(read_json(tmp_path / "out" / "results.json")["benchmarks"]) == {"mimic-cxr"}


def test_missing_sources_are_all_named(data, tmp_path):
    root = data("evaluate-table1")
    for name in ("slake", "medmnist"):
        shutil.rmtree(root / "raw" / name)
    message = said(evaluate("--recipe", "evaluate-table1", "--dry-run", "--data-root", root, "--out", tmp_path / "o"))
    assert "2 of the data sets" in message
    assert "slake: " in message
    assert "medmnist: " in message


def test_records_of_other_settings_are_refused(data, tmp_path):
    root = data("evaluate-table1")
    words = [
        "--recipe",
        "evaluate-table1",
        "--dry-run",
        "--data-root",
        root,
        "--benchmark",
        "mimic-cxr",
        "--out",
        tmp_path / "o",
    ]
    assert evaluate(*words).exit_code == 0
    report = root / "mimic-cxr" / "report.json"
    report.write_text(report.read_text().replace('"max_words": 50', '"max_words": 60'))
    assert "was converted with the settings" in said(evaluate(*words))


def test_references_are_cut_to_the_published_length(data, tmp_path):
    root = data("evaluate-table1")
    words = ["--dry-run", "--data-root", root, "--benchmark", "mimic-cxr", "--out", tmp_path / "o"]
    assert evaluate("--recipe", "evaluate-table1", *words).exit_code == 0
    (record,) = iter_jsonl(root / "mimic-cxr" / "test.jsonl")
    assert record["answer"] == "Findings: Mild edema. No effusion. Impression: Edema."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datta": {}}, "datta: unknown key. Did you mean 'data'"),
        ({"data": {"slake": {"source": "x", "benchmarks": ["slake-vqaa"]}}}, "unknown benchmark 'slake-vqaa'"),
        ({"data": {"slakee": {"source": "x", "benchmarks": ["slake-vqa"]}}}, "slake"),
        ({"data": {"slake": {"source": "x", "set": {"lang": "en"}, "benchmarks": ["slake-vqa"]}}}, "has no option 'lang'"),
        ({"data": {"slake": {"source": "x", "benchmarks": ["slake-vqa", "slake-vqa"]}}}, "named twice"),
        ({"data": {"slake": {"source": "x"}}}, "data.slake.benchmarks: this key is required"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe_are_named(change, message, tmp_path):
    values = {"name": "t", "data": {"slake": {"source": "x", "benchmarks": ["slake-vqa"]}}} | change
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(MedMVLError, match=re.escape(message)):
        load_evaluation_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("--out", "o"), EvaluationError, "Give --benchmark NAME or --recipe FILE"),
        (("--out", "o", "--dry-run", "--benchmark", "own"), EvaluationError, "--dry-run belongs to --recipe"),
        (("--out", "o", "--recipe", "evaluate-table3", "--dry-run"), RecipeError, "Did you mean 'evaluate-table"),
        (("--out", "o", "--recipe", "evaluate-table2", "--dry-run", "--benchmark", "pathvqa"), RecipeError, "It holds: ct-rate-long"),
        (("--out", "o", "--recipe", "evaluate-table2", "--predictions", "p"), EvaluationError, "takes no --predictions"),
    ],
)  # fmt: skip
def test_contradicting_flags_are_named(words, error, message):
    outcome = evaluate(*words)
    assert isinstance(outcome.exception, error), (outcome.output, outcome.exception)
    assert message in str(outcome.exception)


@pytest.mark.parametrize("file", shipped_evaluations(), ids=lambda file: file.stem)
def test_recipes_hold_the_published_columns_and_training_settings(file):
    recipe = load_evaluation_recipe(file)
    assert recipe.name == file.stem
    columns = {name for table in published_tables() for name in table.columns.values()}
    named = {name for entry in recipe.data.values() for name in entry.benchmarks}
    assert named <= columns
    training = load_recipe(find_recipe(Path(TRAINING[file.stem])))
    trained = {entry.path.split("/")[0] for entry in training.data.values()}
    assert set(recipe.data) <= trained
    head = find_recipe(Path(TRAINING[file.stem])).read_text().partition("\nname:")[0]
    for dataset, entry in recipe.data.items():
        for key, value in entry.set.items():
            assert f"{key}={value}" in head, dataset


def test_both_recipes_hold_all_published_columns():
    named = {
        name
        for file in shipped_evaluations()
        for entry in load_evaluation_recipe(file).data.values()
        for name in entry.benchmarks
    }
    assert named == {name for table in published_tables() for name in table.columns.values()}
