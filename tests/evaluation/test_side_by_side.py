"""Two runs side by side: what both answered, tested in pairs, with the answers that changed."""

from __future__ import annotations

import pytest

from medmvl.errors import EvaluationError
from medmvl.evaluation import compare_predictions
from medmvl.files import read_json, write_jsonl


@pytest.fixture
def runs(tmp_path, phantom_rows):
    worse = [
        {**row, "prediction": "no"} if row["id"].endswith("-side") else row
        for row in phantom_rows
        if row["id"] != "3-open"
    ]
    write_jsonl(tmp_path / "a" / "p.jsonl", phantom_rows)
    write_jsonl(tmp_path / "b" / "p.jsonl", worse)
    return tmp_path / "a" / "p.jsonl", tmp_path / "b" / "p.jsonl"


def test_differences_are_paired(tmp_path, runs):
    results = compare_predictions(*runs, "phantom-2d", tmp_path / "out")
    assert read_json(tmp_path / "out" / "side-by-side.json") == results
    assert results["names"] == ["a/p", "b/p"]
    assert results["counts"] == {"shared": 59, "only_first": 1, "only_second": 0}
    closed = results["metrics"]["closed_accuracy"]
    assert closed["difference"] == pytest.approx(9 / 20)
    assert closed["first"] - closed["second"] == pytest.approx(closed["difference"])
    assert closed["p_value"] < 0.01
    assert closed["ci95"][0] > 0
    assert results["metrics"]["miou"]["difference"] == 0
    assert results["metrics"]["miou"]["p_value"] == 1
    assert results["groups"] == {}  # closed accuracy has one kind of question here


def test_the_page_shows_what_changed(tmp_path, runs):
    compare_predictions(*runs, "phantom-2d", tmp_path / "out", names=("new", "old"))
    page = (tmp_path / "out" / "side-by-side.html").read_text()
    assert "Better answered by new" in page
    assert "Better answered by old" not in page
    assert "On which side is the device" in page


def test_swapping_the_runs_swaps_the_sign(tmp_path, runs):
    one = compare_predictions(*runs, "phantom-2d", tmp_path / "out")["metrics"]["bleu1"]
    other = compare_predictions(*reversed(runs), "phantom-2d", tmp_path / "out")["metrics"]["bleu1"]
    assert one["difference"] == -other["difference"]
    assert one["p_value"] == other["p_value"]


def test_runs_without_a_common_record(tmp_path, runs, phantom_rows):
    write_jsonl(tmp_path / "c.jsonl", [{**row, "id": f"other-{row['id']}"} for row in phantom_rows])
    with pytest.raises(EvaluationError, match="share no record of 'phantom-2d'"):
        compare_predictions(runs[0], tmp_path / "c.jsonl", "phantom-2d", tmp_path / "out")
