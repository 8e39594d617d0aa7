"""`medmvl evaluate` on the command line."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from medmvl.cli.evaluate import evaluate
from medmvl.errors import EvaluationError
from medmvl.files import read_json, write_jsonl

app = typer.Typer()
app.command()(evaluate)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


def test_a_predictions_file_with_controls(tmp_path, phantom_rows):
    write_jsonl(tmp_path / "p.jsonl", phantom_rows)
    write_jsonl(tmp_path / "b.jsonl", [{**row, "prediction": "no"} for row in phantom_rows])
    outcome = run(
        *("--predictions", tmp_path / "p.jsonl", "--benchmark", "phantom-2d", "--out", tmp_path / "out"),
        *("--control-predictions", f"blank={tmp_path / 'b.jsonl'}"),
    )
    assert outcome.exit_code == 0, outcome.output
    entry = read_json(tmp_path / "out" / "results.json")["benchmarks"]["phantom-2d"]
    assert entry["controls"]["blank"]["closed_accuracy"]["value"] == pytest.approx(0.25)
    assert (tmp_path / "out" / "report.html").is_file()


def test_main_score_is_printed_with_interval_and_controls(tmp_path, phantom_rows):
    write_jsonl(tmp_path / "p.jsonl", phantom_rows)
    write_jsonl(tmp_path / "b.jsonl", [{**row, "prediction": "no"} for row in phantom_rows])
    common = ("--predictions", tmp_path / "p.jsonl", "--out", tmp_path / "out")
    run(*common, "--benchmark", "phantom-ct")
    outcome = run(*common, "--benchmark", "phantom-2d", "--control-predictions", f"blank={tmp_path / 'b.jsonl'}")
    line, where = outcome.output.splitlines()
    score = read_json(tmp_path / "out" / "results.json")["benchmarks"]["phantom-2d"]["model"]["closed_accuracy"]
    low, high = score["ci95"]
    assert line.startswith(
        f"phantom-2d: closed accuracy (strict) {score['value']:.3f} [{low:.2f}, {high:.2f}], n = {score['n']} ("
    )
    assert "blank 0.250, majority" in line
    assert "owed to the image +" in line
    assert where.startswith("Results are in")


def test_without_the_main_kind_of_question_another_score_is_printed(tmp_path, phantom_rows):
    rows = [row for row in phantom_rows if row.get("answer_type") != "CLOSED"]
    write_jsonl(tmp_path / "p.jsonl", rows)
    outcome = run("--predictions", tmp_path / "p.jsonl", "--benchmark", "phantom-2d", "--out", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.startswith("phantom-2d: ")
    assert "closed accuracy" not in outcome.output


def test_a_folder_of_predictions_scores_several_benchmarks(tmp_path, phantom_rows):
    for name in ("phantom-2d", "phantom-ct", "phantom-ct.shuffled"):
        write_jsonl(tmp_path / "kept" / f"{name}.jsonl", phantom_rows)
    outcome = run(
        *("--predictions", tmp_path / "kept", "--benchmark", "phantom-2d,phantom-ct", "--out", tmp_path / "out")
    )
    assert outcome.exit_code == 0, outcome.output
    results = read_json(tmp_path / "out" / "results.json")["benchmarks"]
    assert set(results) == {"phantom-2d", "phantom-ct"}
    assert set(results["phantom-ct"]["controls"]) == {"shuffled", "majority"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--benchmark", "phantom-2d"), "Give either --predictions"),
        (("--benchmark", "phantom2d", "--predictions", "x.jsonl"), "Did you mean 'phantom-2d'"),
        (("--benchmark", "phantom-2d", "--predictions", "x.jsonl", "--control-predictions", "blank"), "NAME=FILE"),
        (("--benchmark", "phantom-2d,phantom-ct", "--predictions", "x.jsonl"), "one file and several benchmarks"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, message):
    outcome = run(*arguments, "--out", tmp_path)
    assert isinstance(outcome.exception, EvaluationError)
    assert message in str(outcome.exception)
