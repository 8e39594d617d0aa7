"""What a comparison says: pooled seeds, paired tests, cost, a page; from folders as the runs leave them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from medmvl.evaluation import evaluate_predictions
from medmvl.experiments.compare import expand, load_matrix
from medmvl.experiments.compare.summary import count_parameters, holm, write_summary
from medmvl.files import read_json, write_jsonl

MATRIX = {
    "name": "demo",
    "description": "Which is better?",
    "recipe": "tiny.yaml",
    "axes": {
        "kind": {
            "good": {"stages.adapt.lr": 1e-3},
            "poor": {"stages.adapt.lr": 2e-3},
            "lost": {"stages.adapt.lr": 3e-3},
        }
    },
    "seeds": [0, 1],
    "evaluate": {"benchmarks": ["phantom-ct"], "data_root": "data"},
}


def answers(quality, seed):
    """Closed questions of 20 patients of which `quality` of 10 are answered right."""
    rows = []
    for number in range(40):
        truth = "yes" if number % 2 else "no"
        right = (number * 7 + seed) % 10 < quality
        rows.append(
            {"id": f"q{number}", "conversations": [{"from": "human", "value": "Is it?"}], "answer": truth,
             "prediction": truth if right else "unknown", "task": "short", "answer_type": "CLOSED",
             "patient": f"p{number % 20}"}
        )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("comparison")
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(MATRIX, sort_keys=False))
    matrix = load_matrix(path)
    runs = expand(matrix, tmp_path)
    root = tmp_path / "out"
    for run in runs:
        if run.variant == "lost":
            continue
        folder = root / "runs" / run.name
        predictions = folder / "predictions" / "phantom-ct.jsonl"
        write_jsonl(predictions, answers(9 if run.variant == "good" else 5, run.seed))
        write_jsonl(folder / "predictions" / "phantom-ct.blank.jsonl", answers(2, 0))
        evaluate_predictions(
            predictions, "phantom-ct", folder, {"blank": folder / "predictions" / "phantom-ct.blank.jsonl"}
        )
        write_jsonl(
            folder / "log.jsonl", [{"stage": "adapt", "step": step, "loss": 1, "tokens": 100} for step in (1, 2)]
        )
        rows = [("stage adapt", 60.0), ("evaluate", 30.0)]
        if run.variant == "good":  # it trained the stages that the others share
            rows = [("stage align", 10.0), ("stage instruct", 20.0), *rows]
        write_jsonl(folder / "cost.jsonl", [
            {"job": job, "seconds": seconds, "peak_memory_bytes": 2**30, "status": 0} for job, seconds in rows
        ])  # fmt: skip
        (folder / "model").mkdir()
        save_file(
            {"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)}, folder / "model" / "model.safetensors"
        )
    return matrix, runs, root


def test_seeds_are_pooled_and_pairs_tested(comparison):
    matrix, runs, root = comparison
    summary = write_summary(matrix, runs, root, ["lost-seed0: stage adapt"])
    assert json.loads(json.dumps(summary)) == read_json(root / "compare.json")
    entry = summary["benchmarks"]["phantom-ct"]
    good = entry["variants"]["good"]
    assert good["metrics"]["closed_accuracy"]["value"] == pytest.approx(0.9)
    assert good["metrics"]["closed_accuracy"]["n"] == 80
    assert set(good["per_seed"]) == {"0", "1"}
    assert good["controls"]["blank"] == pytest.approx(0.2)
    [pair] = entry["pairs"]
    assert (pair["first"], pair["second"]) == ("good", "poor")
    assert pair["difference"] == pytest.approx(0.4)
    assert pair["p_value"] < 0.01
    assert pair["ci95"][0] > 0


def test_pooling_seeds_does_not_make_patients_independent(comparison):
    matrix, runs, root = comparison
    entry = write_summary(matrix, runs, root, [])["benchmarks"]["phantom-ct"]
    single = read_json(root / "runs" / "good-seed0" / "results.json")["benchmarks"]["phantom-ct"]["model"]
    pooled = entry["variants"]["good"]["metrics"]["closed_accuracy"]["ci95"]
    alone = single["closed_accuracy"]["ci95"]
    # Twice the answers of the same patients: the interval may shrink, but not as if there were twice the patients.
    assert (pooled[1] - pooled[0]) > 0.5 * (alone[1] - alone[0])


def test_cost_counts_shared_stages_for_every_run_that_uses_them(comparison):
    matrix, runs, root = comparison
    cost = write_summary(matrix, runs, root, [])["cost"]
    assert set(cost) == {"good", "poor"}
    assert cost["good"]["train_seconds"] == cost["poor"]["train_seconds"] == 90
    assert (cost["good"]["spent_seconds"], cost["poor"]["spent_seconds"]) == (120, 90)
    assert cost["poor"]["parameters"] == 17
    assert cost["poor"]["train_tokens"] == 200


def test_the_pages_hold_the_table_the_plot_and_what_is_missing(comparison):
    matrix, runs, root = comparison
    write_summary(matrix, runs, root, ["lost-seed0: stage adapt"])
    page, table = (root / "report.html").read_text(), (root / "table.md").read_text()
    assert "<svg" in page
    assert "lost-seed0: stage adapt" in page
    assert "| good | 0.900" in table
    assert "good minus poor" in table
    assert "not finished: lost-seed0" in table
    assert "Synthetic data" in table


def test_holm():
    # Sorted 0.01, 0.02, 0.04: times 3, 2, 1 gives 0.03, 0.04, 0.04.
    assert holm([0.04, 0.01, None, 0.02]) == pytest.approx([0.04, 0.03, None, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_parameters_are_counted_from_headers(tmp_path):
    save_file({"w": np.zeros((2, 3), np.float32)}, tmp_path / "model-00001.safetensors")
    save_file({"v": np.zeros(7, np.float32)}, tmp_path / "model-00002.safetensors")
    assert count_parameters(tmp_path) == 13
