"""A checkpoint is predicted, also under controls, and scored; what is there already is not predicted again."""

from __future__ import annotations

import pytest

from medmvl.data.roots import MediaRoots
from medmvl.errors import DataError, EvaluationError
from medmvl.evaluation import evaluate_model
from medmvl.files import iter_jsonl, write_jsonl
from medmvl.inference import GenerationOptions, Predictor

SHORT = GenerationOptions(max_new_tokens=3)


@pytest.fixture
def records(tmp_path, media):
    rows = [
        {
            "id": f"{name}{number}",
            "conversations": [
                {"from": "human", "value": f"<image>\nIs there {what}?"},
                {"from": "gpt", "value": "yes"},
            ],
            "image": [f"{name}.png"],
            "patient": name,
            "task": "vqa",
            "answer_type": "CLOSED",
        }
        for name in "abc"
        for number, what in enumerate(("air", "fluid"))
    ]
    path = tmp_path / "data" / "phantom-2d" / "test.jsonl"
    write_jsonl(path, rows)
    return path


def test_a_model_is_evaluated_beside_its_controls(tmp_path, model_folder, media, records):
    counts = []
    predictor = Predictor.from_pretrained(model_folder)
    results = evaluate_model(
        predictor, "phantom-2d", tmp_path / "data", tmp_path / "out", ["blank"],
        roots=MediaRoots(image=media), generation=SHORT, on_row=lambda done, total: counts.append((done, total)),
    )  # fmt: skip
    entry = results["benchmarks"]["phantom-2d"]
    assert entry["model"]["closed_accuracy"]["n"] == 6
    assert set(entry["controls"]) == {"blank", "majority"}
    assert counts == sorted(counts)
    assert counts[-1] == (12, 12)
    kept = list(iter_jsonl(tmp_path / "out" / "predictions" / "phantom-2d.jsonl"))
    assert [row["id"] for row in kept] == ["a0", "a1", "b0", "b1", "c0", "c1"]

    counts.clear()
    again = evaluate_model(
        predictor, "phantom-2d", records, tmp_path / "out", ["shuffled"],
        roots=MediaRoots(image=media), generation=SHORT, on_row=lambda done, total: counts.append((done, total)),
    )["benchmarks"]["phantom-2d"]  # fmt: skip
    assert len(counts) == 1  # only the new control was predicted, in one batch
    assert set(again["controls"]) == {"blank", "shuffled", "majority"}
    assert again["model"] == entry["model"]


def test_mistakes_are_named(tmp_path, model_folder, records):
    with pytest.raises(DataError, match=r"No records of 'phantom-ct' below .*phantom-ct/test.jsonl"):
        evaluate_model(model_folder, "phantom-ct", tmp_path / "data", tmp_path / "out")
    with pytest.raises(EvaluationError, match="Did you mean 'blank'"):
        evaluate_model(model_folder, "phantom-2d", tmp_path / "data", tmp_path / "out", ["blanc"])
