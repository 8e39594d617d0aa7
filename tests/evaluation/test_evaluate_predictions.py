"""From a predictions file to an evaluation folder."""

from __future__ import annotations

import json
import random

import pytest

from medmvl.errors import DataError, EvaluationError
from medmvl.evaluation import EvaluationOptions, evaluate_predictions, merge_results
from medmvl.files import read_json, write_jsonl


@pytest.fixture
def predictions(tmp_path, phantom_rows):
    path = tmp_path / "predictions.jsonl"
    write_jsonl(path, phantom_rows)
    return path


def blinded(rows):
    """The rows as a model answers that always says the same."""
    return [{**row, "prediction": "no" if row["task"] == "vqa" else "heart"} for row in rows]


def test_results_have_the_contracted_shape(tmp_path, predictions, phantom_rows):
    for name in ("blank", "shuffled"):
        write_jsonl(tmp_path / f"{name}.jsonl", blinded(phantom_rows))
    controls = {name: tmp_path / f"{name}.jsonl" for name in ("blank", "shuffled")}
    results = evaluate_predictions(predictions, "phantom-2d", tmp_path / "out", controls)
    assert read_json(tmp_path / "out" / "results.json") == json.loads(json.dumps(results))
    entry = results["benchmarks"]["phantom-2d"]
    expected = {"closed_accuracy", "token_f1_unimed", "bleu1", "rouge_l", "label_f1_macro", "miou", "acc_iou50"}
    assert expected <= set(entry["model"])
    for metrics in (entry["model"], *entry["controls"].values()):
        for number in metrics.values():
            assert set(number) == {"value", "n", "ci95"}
            assert 0 <= number["value"] <= 1
            assert number["ci95"][0] <= number["value"] <= number["ci95"][1]
    assert {"blank", "shuffled", "majority"} == set(entry["controls"])
    closed = entry["model"]["closed_accuracy"]
    assert closed["n"] == 20
    assert closed["value"] == pytest.approx(19 / 20)
    assert entry["controls"]["blank"]["closed_accuracy"]["value"] == pytest.approx(5 / 20)
    assert entry["image"]["closed_accuracy"]["gain"] == pytest.approx(14 / 20)
    assert entry["model"]["miou"]["value"] == pytest.approx(9 / 10)
    assert entry["scorers"]["closed_accuracy"]["version"]
    assert entry["counts"]["patients"] == 10
    assert entry["synthetic"] is True
    table = (tmp_path / "out" / "table.md").read_text()
    assert "closed_accuracy" in table
    assert "Synthetic" in table


def test_a_blind_model_owes_nothing_to_the_image(tmp_path, phantom_rows):
    path = tmp_path / "blind.jsonl"
    write_jsonl(path, blinded(phantom_rows))
    results = evaluate_predictions(path, "phantom-2d", tmp_path / "out", {"blank": path, "shuffled": path})
    shares = results["benchmarks"]["phantom-2d"]["image"]
    assert shares
    assert {share["share"] for share in shares.values()} == {0.0}
    assert {share["gain"] for share in shares.values()} == {0.0}
    assert all(share["p_value"] == 1.0 for share in shares.values())


def test_the_order_of_rows_changes_nothing(tmp_path, predictions, phantom_rows):
    first = evaluate_predictions(predictions, "phantom-2d", tmp_path / "a")["benchmarks"]["phantom-2d"]
    moved = random.Random(3).sample(phantom_rows, len(phantom_rows))
    write_jsonl(tmp_path / "shuffled.jsonl", moved)
    second = evaluate_predictions(tmp_path / "shuffled.jsonl", "phantom-2d", tmp_path / "b")["benchmarks"]["phantom-2d"]
    for part in ("model", "image", "counts"):
        assert first[part] == second[part]
    assert first["controls"]["majority"] == second["controls"]["majority"]


def test_a_second_benchmark_joins_the_folder(tmp_path, predictions, phantom_rows):
    evaluate_predictions(predictions, "phantom-2d", tmp_path / "out")
    ct = tmp_path / "ct.jsonl"
    write_jsonl(ct, [row for row in phantom_rows if row["task"] == "vqa"])
    results = evaluate_predictions(ct, "phantom-ct", tmp_path / "out")
    assert set(results["benchmarks"]) == {"phantom-2d", "phantom-ct"}


def test_merge_results_refuses_what_is_none():
    with pytest.raises(EvaluationError, match="benchmarks"):
        merge_results([{"model": {}}])


def test_unknown_names_get_the_closest(tmp_path, predictions):
    with pytest.raises(EvaluationError, match="Did you mean 'phantom-2d'"):
        evaluate_predictions(predictions, "phantom2d", tmp_path)
    with pytest.raises(EvaluationError, match="Did you mean 'shuffled'"):
        evaluate_predictions(predictions, "phantom-2d", tmp_path, {"shufled": predictions})


def test_faults_are_counted_named_and_stop_a_strict_run(tmp_path, phantom_rows):
    silent = {**phantom_rows[0], "id": "silent", "answer": " "}
    strange = {"id": "strange", "conversations": ["Is it?", "yes"], "prediction": "no"}
    rows = [*phantom_rows, phantom_rows[0], {"prediction": "x"}, {"id": "lost"}, ["list"], silent, strange]
    path = tmp_path / "faulty.jsonl"
    write_jsonl(path, rows)
    with path.open("a") as handle:
        handle.write('{"id": "cut off by a ki')
    with pytest.raises(EvaluationError, match="id seen twice: 0-closed"):
        evaluate_predictions(path, "phantom-2d", tmp_path / "strict", options=EvaluationOptions(strict=True))
    with pytest.raises(EvaluationError, match=r"10\.4% of the rows are faulty.*no prediction: 1 \(lost\)"):
        evaluate_predictions(path, "phantom-2d", tmp_path / "out")
    faults = read_json(tmp_path / "out" / "results.json")["benchmarks"]["phantom-2d"]["faults"]
    assert faults == {
        "conversation is no list of turns": {"count": 1, "first": ["strange"]},
        "id seen twice": {"count": 1, "first": ["0-closed"]},
        "no id": {"count": 1, "first": ["row 62"]},
        "no prediction": {"count": 1, "first": ["lost"]},
        "not an object": {"count": 1, "first": ["row 64"]},
        "no reference answer": {"count": 1, "first": ["silent"]},
        "not JSON": {"count": 1, "first": ["line 67"]},
    }
    evaluate_predictions(path, "phantom-2d", tmp_path / "out", options=EvaluationOptions(max_faulty=0.2))


def test_missing_answers_count_as_empty_and_unknown_ones_do_not_count(tmp_path, predictions, phantom_rows):
    references = [{key: value for key, value in row.items() if key != "prediction"} for row in phantom_rows[1:]]
    references.append({**references[-1], "id": "unasked"})
    write_jsonl(tmp_path / "data.jsonl", references)
    results = evaluate_predictions(
        predictions,
        "phantom-2d",
        tmp_path / "out",
        options=EvaluationOptions(references=tmp_path / "data.jsonl", max_faulty=0.1),
    )
    entry = results["benchmarks"]["phantom-2d"]
    assert entry["faults"]["id not in the data"]["first"] == ["0-closed"]
    assert entry["faults"]["not answered"]["first"] == ["unasked"]
    assert entry["counts"]["empty_predictions"] == 1
    assert entry["counts"]["records"] == 60


def test_the_share_of_faulty_rows_counts_each_row_once(tmp_path, predictions, phantom_rows):
    references = [{key: value for key, value in row.items() if key != "prediction"} for row in phantom_rows]
    unasked = [{**references[0], "id": f"unasked-{number}"} for number in range(60)]
    write_jsonl(tmp_path / "data.jsonl", references + unasked)
    with pytest.raises(EvaluationError, match=r"50\.0% of the rows are faulty"):
        evaluate_predictions(
            predictions, "phantom-2d", tmp_path / "out", options=EvaluationOptions(references=tmp_path / "data.jsonl")
        )


def test_files_that_cannot_be_read_say_so(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        evaluate_predictions(tmp_path / "none.jsonl", "phantom-2d", tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"id": 1,')
    with pytest.raises(DataError, match="line 1"):
        evaluate_predictions(tmp_path / "bad.jsonl", "phantom-2d", tmp_path, options=EvaluationOptions(strict=True))
    with pytest.raises(EvaluationError, match=r"not JSON: 1 \(line 1\)"):
        evaluate_predictions(tmp_path / "bad.jsonl", "phantom-2d", tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(EvaluationError, match="no prediction that can be scored"):
        evaluate_predictions(tmp_path / "empty.jsonl", "phantom-2d", tmp_path)


def test_what_is_not_text_or_no_path_is_no_crash(tmp_path, phantom_rows):
    rows = [dict(row) for row in phantom_rows]
    rows[0]["prediction"] = "half a pair: \ud800"
    rows[1] |= {"image": 1.5, "id": "\ud800"}
    (tmp_path / "odd.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    results = evaluate_predictions(tmp_path / "odd.jsonl", "phantom-2d", tmp_path / "out")
    assert results["benchmarks"]["phantom-2d"]["counts"]["records"] == len(rows)
    cases = read_json(tmp_path / "out" / "details" / "phantom-2d.json")["cases"]
    assert any("\ud800" in case["prediction"] for case in cases)  # the worst closed answer, as it was
