"""The benchmark of evidence: pointing by hand, curves by hand, and rows for a model and its controls."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from medmvl import Predictor
from medmvl.errors import DataError, EvaluationError
from medmvl.evaluation import BENCHMARKS, evaluate_model
from medmvl.evaluation.evidence import pointing, predict_evidence, with_random_weights
from medmvl.files import write_jsonl
from medmvl.inference import Answer
from medmvl.inference.evidence.curves import area, deletion_and_insertion


class Sure(Predictor):
    """Answers Yes about every picture but an empty one."""

    def generate(self, encoded, options, keys=None):
        empty = [float(next(v for k, v in one.items() if k != "input_ids").std()) == 0 for one in encoded]
        return [Answer("No" if nothing else "Yes", [1], 1.0) for nothing in empty]


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:
    loaded = Predictor.from_pretrained(model_folder)
    return Sure(loaded.model, loaded.processor)


@pytest.fixture
def records(predictor, media, tmp_path):
    """Four records, one of which is answered wrongly; boxes are everywhere, or in a corner."""
    for name in "ab":
        shutil.copy(media / f"{name}.png", tmp_path)
        shutil.copy(media / f"{name}.npy", tmp_path)
    Image.new("RGB", (48, 40)).save(tmp_path / "empty.png")
    everywhere, corner = [[0, 0], [40, 48]], [[0, 0], [1, 1]]
    rows = [
        {"image": ["a.png"], "answer": "Yes", "evidence": {"box": everywhere, "erased": "empty.png"}},
        {"image": ["a.png"], "answer": "Yes", "evidence": {"box": corner, "erased": "a.png"}},
        {"image": ["b.png"], "answer": "No", "evidence": {"box": everywhere}},
        {
            "image3d": ["a.npy"],
            "answer": "Yes",
            "read": {"units": "HU"},
            "evidence": {"box": [[0, 0, 0], [6, 40, 40]], "erased": "a.npy"},
        },
    ]
    for number, row in enumerate(rows):
        placeholder = "<image>" if "image" in row else "<image3d>"
        row |= {"id": f"r{number}", "patient": f"p{number}"}
        row["conversations"] = [{"from": "human", "value": f"{placeholder}\nWhat is seen?"}]
    write_jsonl(tmp_path / "evidence.jsonl", rows)
    return tmp_path


def test_evidence_is_measured_for_the_model_and_its_controls(predictor, records, tmp_path):
    results = evaluate_model(predictor, "evidence", records, tmp_path / "out")
    entry = results["benchmarks"]["evidence"]
    assert entry["model"]["pointing"]["n"] == 3  # the wrong answer points nowhere
    assert entry["model"]["pointing_volumes"] == {"value": 1.0, "n": 1, "ci95": None}
    assert entry["model"]["pointing"]["value"] >= 2 / 3
    assert set(entry["controls"]) == {"attention", "random_weights", "chance"}
    chance = entry["controls"]["chance"]["pointing_images"]["value"]
    patch = 40 / 4 + 1, 48 / 4 + 1  # the corner and one patch more
    assert chance == pytest.approx((1 + patch[0] * patch[1] / (40 * 48)) / 2, abs=0.02)
    assert {"pointing", "insertion"} <= set(entry["image"])
    titles = [chart["title"] for chart in entry["charts"]]
    assert titles == ["Deletion, images", "Insertion, images", "Deletion, volumes", "Insertion, volumes"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "over the better control" in page
    assert page.count("<polyline") == 12
    rows = [json.loads(line) for line in (tmp_path / "out/predictions/evidence.jsonl").read_text().splitlines()]
    assert rows[0]["measured"]["answer_changes"] == 1.0
    assert rows[1]["measured"]["answer_changes"] == 0.0  # the erased picture is the same one
    assert rows[3]["measured"]["answer_changes"] == 0.0
    assert rows[2]["measured"] == {}


def test_measured_rows_are_not_measured_again(predictor, records, tmp_path):
    from medmvl.data.roots import MediaRoots

    out = tmp_path / "rows.jsonl"
    assert predict_evidence(predictor, records / "evidence.jsonl", out, roots=MediaRoots()) == 4
    assert predict_evidence(predictor, records / "evidence.jsonl", out, roots=MediaRoots()) == 0
    with pytest.raises(DataError, match="begun with another"):
        predict_evidence(predictor, records / "evidence.jsonl", out, roots=MediaRoots(), control="attention")


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        (None, 'r0.*needs "evidence"'),
        ({"box": [[0, 0, 0], [1, 1, 1]]}, "r0.*2 numbers each"),
        ({"box": "all"}, "r0.*box must be"),
        ({"erased": 3}, "r0.*must be a path"),
        ({"erased": "gone-picture.png"}, "gone-picture.png"),
    ],
)
def test_a_record_without_evidence_is_named(predictor, records, evidence, message):
    from medmvl.data.roots import MediaRoots

    rows = [json.loads(line) for line in (records / "evidence.jsonl").read_text().splitlines()]
    rows[0]["evidence"] = evidence
    write_jsonl(records / "evidence.jsonl", rows)
    with pytest.raises(DataError, match=message):
        predict_evidence(predictor, records / "evidence.jsonl", records / "o.jsonl", roots=MediaRoots())


def test_other_controls_are_refused(predictor, records, tmp_path):
    with pytest.raises(EvaluationError, match=r"Unknown control 'blank'.*attention"):
        evaluate_model(predictor, "evidence", records, tmp_path / "out", ["blank"])
    assert "blank" in BENCHMARKS["own"].controls


def test_pointing_follows_the_peak(predictor, media):
    found = predictor.explain("What?", [str(media / "a.png")], answer="Yes.", levels=1)
    row, column = found.peak
    patch = found.patch
    inside = pointing(found, [[row, column], [row + 1, column + 1]])
    assert (inside["pointing"], inside["pointing_strict"]) == (1.0, 1.0)
    assert inside["pointing_strict_chance"] == pytest.approx(1 / (40 * 48))
    near = pointing(found, [[row + patch[0] / 2, column], [row + patch[0] / 2 + 1, column + 1]])
    assert (near["pointing"], near["pointing_strict"]) == (1.0, 0.0)
    far = pointing(found, [[row + patch[0] + 2, column], [row + patch[0] + 3, column + 1]])
    assert far["pointing"] == 0.0


def test_curves_of_a_known_region():
    """The probability is the brightness of one corner, which a good heat map deletes and inserts first."""
    values, neutral = torch.ones(1, 10, 10), torch.zeros(1, 10, 10)

    def score(inputs):
        return [math.log(max(1e-9, float(one[0, :2, :5].mean()))) for one in inputs]

    good = np.zeros((10, 10), dtype=np.float32)
    good[:2, :5] = 1
    deletion, insertion = deletion_and_insertion(score, values, neutral, good)
    assert deletion == pytest.approx([1] + [0] * 10, abs=1e-6)
    assert insertion == pytest.approx([0] + [1] * 10, abs=1e-6)
    assert area(deletion) == pytest.approx(0.05)
    bad_deletion, bad_insertion = deletion_and_insertion(score, values, neutral, -good, batch=3)
    assert area(bad_deletion) > 0.9
    assert area(bad_insertion) < 0.1


def test_random_weights_are_others_and_the_same_each_time(predictor):
    before = torch.get_rng_state()
    one, two = with_random_weights(predictor), with_random_weights(predictor)
    assert torch.equal(torch.get_rng_state(), before)
    name = "language_model.model.embed_tokens.weight"
    weights = [found.model.state_dict()[name] for found in (one, two, predictor)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
