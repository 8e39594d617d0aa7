"""The quickstart's pieces: its recipe is valid, its records are, and the whole way runs in small (slow circle, CI)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medmvl.data.check import check_records
from medmvl.errors import RecipeError
from medmvl.experiments.quickstart import PATIENTS, Quickstart, patient_counts, quickstart, recipe
from medmvl.phantoms import draw_patient
from medmvl.phantoms.warmup_texts import write_closed, write_text_only_patients
from medmvl.training.recipe_io import load_recipe


def test_the_recipe_is_valid_and_follows_the_seed(tmp_path):
    settings = load_recipe(recipe(Quickstart(tmp_path), seed=7))
    assert settings.seed == 7
    assert [stage.name for stage in settings.stages] == ["look", "answer", "align", "instruct"]


def test_the_scale_shortens_every_stage(tmp_path):
    whole, half = (load_recipe(recipe(Quickstart(tmp_path), 0, scale)) for scale in (1.0, 0.5))
    assert [stage.epochs for stage in half.stages] == [stage.epochs / 2 for stage in whole.stages]


def test_counts_stay_even_so_that_pairs_of_patients_stay_together():
    assert patient_counts(1.0) == PATIENTS
    assert all(count % 2 == 0 for scale in (0.02, 0.1, 0.33) for count in patient_counts(scale).values())


def test_text_only_patients_are_valid_records_about_nobody_who_is_drawn(tmp_path):
    path = tmp_path / "text-only-patients.jsonl"
    write_text_only_patients(path, seed=0, count=4)
    assert check_records(path) == []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 4
    assert all(int(row["id"].rpartition("-")[2]) >= 1_000_000 for row in rows)
    truth = draw_patient(0, 1_000_000).findings
    assert ("Consolidation: no." in rows[0]["conversations"][0]["value"]) == ("consolidation" not in truth)


def test_closed_questions_keep_the_picture_in_front(tmp_path):
    turns = [
        ("<image>\nWhere is it?", "Left lung"),
        ("Is it there?", "Yes"),
        ("What plane?", "Axial"),
        ("Side?", "Left"),
    ]
    row = {
        "id": "a",
        "image": ["a.png"],
        "conversations": [
            {"from": speaker, "value": text}
            for turn in turns
            for speaker, text in zip(("human", "gpt"), turn, strict=True)
        ],
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    write_closed(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    closed = json.loads((tmp_path / "out.jsonl").read_text())
    assert [turn["value"] for turn in closed["conversations"]] == ["<image>\nIs it there?", "Yes", "Side?", "Left"]


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_a_scale_that_makes_no_sense_is_refused(tmp_path, scale):
    with pytest.raises(RecipeError, match="scale"):
        quickstart(tmp_path, scale=scale)


@pytest.mark.slow
def test_the_whole_way_in_small(tmp_path: Path):
    results = quickstart(tmp_path / "run", seed=1, scale=0.02)
    for name in ("phantom-2d", "phantom-ct"):
        found = results["benchmarks"][name]
        assert {"value", "n", "ci95"} <= found["model"]["closed_accuracy"].keys()
        assert found["controls"].keys() >= {"blank", "shuffled"}
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
