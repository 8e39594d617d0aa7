"""Calibration: scores by hand and against numpy, temperatures that change no answer, abstention."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

from medmvl import Predictor
from medmvl.data.dataset import SampleDataset
from medmvl.data.roots import MediaRoots
from medmvl.errors import CheckpointError, DataError, RecipeError
from medmvl.evaluation import evaluate_model
from medmvl.evaluation.breakdown import risk_coverage
from medmvl.evaluation.calibration import fit_calibration
from medmvl.evaluation.items import make_item
from medmvl.evaluation.metrics.measured import BRIER, ECE
from medmvl.evaluation.scoring import score_metric
from medmvl.files import write_json, write_jsonl
from medmvl.inference import Answer, predict_file
from medmvl.inference.calibration import (
    ABSTENTION,
    TEMPERATURES,
    Calibration,
    nll_over_temperatures,
    threshold_for,
)
from medmvl.inference.engine import GenerationOptions


def items(confidences, right):
    return [
        make_item(
            {"id": f"i{n}", "question": "Is it?", "answer": "yes", "confidence": c, "prediction": "yes" if r else "no"}
        )
        for n, (c, r) in enumerate(zip(confidences, right, strict=True))
    ]


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(3)
    confidences = rng.uniform(0, 1, 400)
    return confidences, (rng.uniform(0, 1, 400) < confidences**2).astype(float)


def test_brier_score_is_the_mean_squared_difference(drawn):
    confidences, right = drawn
    expected = float(np.mean((right - confidences) ** 2))
    assert score_metric(BRIER, items(*drawn), interval=False).value == pytest.approx(expected)


def test_expected_calibration_error_weighs_the_gaps_of_ten_bins(drawn):
    confidences, right = drawn
    place = np.digitize(confidences, np.linspace(0, 1, 11)[1:-1])
    gaps = [abs(right[place == n].mean() - confidences[place == n].mean()) * np.mean(place == n) for n in range(10)]
    expected = float(np.sum(gaps))
    assert score_metric(ECE, items(*drawn), interval=False).value == pytest.approx(expected)


def test_risk_over_coverage_by_hand():
    found = risk_coverage(items([0.9, 0.8, 0.8, 0.1], [1, 0, 1, 0]))
    assert found["points"] == [[0.25, 0.0], [0.75, pytest.approx(1 / 3, abs=1e-4)], [1.0, 0.5]]
    assert found["area"] == pytest.approx(0.5 / 3 + 0.25 * 0.5)


@pytest.mark.parametrize(
    ("confidences", "right", "target", "threshold", "coverage"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 1.0, 0.8, 0.5),
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 0.75, 0.6, 1.0),
        ([0.9, 0.9, 0.7], [1, 0, 1], 1.0, 1.000001, 0.0),  # equal confidences are answered together
        ([0.5], [0], 0.9, 1.000001, 0.0),
    ],
)
def test_threshold_is_the_least_that_reaches_the_target(confidences, right, target, threshold, coverage):
    assert threshold_for(confidences, right, target) == (pytest.approx(threshold), pytest.approx(coverage))


def test_likelihood_over_temperatures_is_cross_entropy():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 30) * 4, torch.randint(0, 30, (50,))
    found = nll_over_temperatures(logits, targets)
    for place in (0, TEMPERATURES.index(1.0), len(TEMPERATURES) - 1):
        expected = torch.nn.functional.cross_entropy(logits / TEMPERATURES[place], targets, reduction="sum")
        assert float(found[place]) == pytest.approx(float(expected), rel=1e-5)


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:
    return Predictor.from_pretrained(model_folder)


@pytest.fixture
def records(media, tmp_path):
    """Closed questions about images, as validation.jsonl and test.jsonl."""
    for name in "abc":
        shutil.copy(media / f"{name}.png", tmp_path)
    for split in ("validation", "test"):
        rows = [
            {
                "id": f"{split}-{name}-{answer}",
                "patient": f"{split}-{name}",
                "image": [f"{name}.png"],
                "conversations": [{"from": "human", "value": f"<image>\nIs it {answer}?"}],
                "answer": answer,
            }
            for name in "abc"
            for answer in ("yes", "no")
        ]
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    return tmp_path


def test_temperature_changes_no_answer_and_lowers_the_likelihood_loss(predictor, records):
    dataset = SampleDataset(records / "validation.jsonl")
    found = fit_calibration(predictor, dataset, target=0.5)
    assert found.temperature != 1
    assert found.nll_after < found.nll_before
    scaled = predictor.with_calibration(found)
    encoded = [predictor.encode(dataset[index].as_question()) for index in range(len(dataset))]
    for options in (GenerationOptions(8), GenerationOptions(8, temperature=0.8, seed=3)):
        before, after = predictor.generate(encoded, options), scaled.generate(encoded, options)
        assert [one.token_ids for one in before] == [one.token_ids for one in after]
        assert [one.confidence for one in before] != [one.confidence for one in after]
    asked = ("Is it yes?", ["yes", "no", "perhaps"], [records / "a.png"])
    plain, softer = predictor.choice_probabilities(*asked), scaled.choice_probabilities(*asked)
    assert sorted(plain, key=plain.__getitem__) == sorted(softer, key=softer.__getitem__)
    samples = [predictor.processor.encode(dataset[index].as_answered(), train=True) for index in range(len(dataset))]
    counts = [count for _, count in scaled.losses(samples)]
    losses = scaled.calibrated_losses(samples)
    assert math.fsum(np.multiply(losses, counts)) / sum(counts) == pytest.approx(found.nll_after, rel=1e-4)


def test_both_decoders_give_the_same_calibrated_confidence(predictor, media):
    scaled = predictor.with_calibration(Calibration(2.5))
    encoded = [scaled.encode(one.as_question()) for one in _questions(media)]
    options = GenerationOptions(6)
    from medmvl.inference.engine import generate_answers

    own = scaled.generate(encoded, options)
    theirs = generate_answers(scaled.model, scaled.processor, encoded, options, calibration=2.5)
    assert [one.confidence for one in own] == pytest.approx([one.confidence for one in theirs], rel=1e-4)


def _questions(media):
    from medmvl.data.sample import Message, Sample

    return [Sample(name, (Message("user", f"<image>\n{name}?"),), images=(str(media / "a.png"),)) for name in "xy"]


def test_calibration_is_stored_in_the_checkpoint_and_read_again(model_folder, records, tmp_path, capsys, monkeypatch):
    import sys

    from medmvl.cli.main import main

    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "medmvl",
            "checkpoint",
            "calibrate",
            str(folder),
            "--data",
            str(records / "validation.jsonl"),
            "--target",
            "0.5",
        ],
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "Temperature" in capsys.readouterr().out
    loaded = Predictor.from_pretrained(folder)
    assert loaded.calibration == Calibration.load(folder)
    assert loaded.calibration.temperature != 1
    assert loaded.calibration.records == 6
    assert Predictor.from_pretrained(model_folder).calibration == Calibration()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not a calibration of this version"),
        ({"format": 2}, "not a calibration of this version"),
        ({"format": 1, "temperature": 0.0}, "temperature must be"),
        ({"format": 1, "temperature": "hot"}, "temperature must be"),
        ({"format": 1, "threshold": True}, "threshold must be"),
    ],
)
def test_damaged_calibration_is_refused(tmp_path, content, message):
    write_json(tmp_path / "calibration.json", content)
    with pytest.raises(CheckpointError, match=message):
        Calibration.load(tmp_path)


def test_unsure_answers_are_withheld(predictor, media):
    image = [str(media / "a.png")]
    encoded = [predictor.encode(_questions(media)[0])]
    sure = predictor.generate(encoded, GenerationOptions(4))[0]
    assert not sure.abstained
    unsure = predictor.generate(encoded, GenerationOptions(4, abstain_below=min(1.0, sure.confidence * 1.01)))[0]
    assert unsure == Answer(ABSTENTION, sure.token_ids, sure.confidence, withheld=sure.text)
    assert predictor.generate(encoded, GenerationOptions(4, abstain_below=sure.confidence * 0.99))[0] == sure
    assert predictor.answer("x?", image, max_new_tokens=4, abstain_below=1.0) == ABSTENTION
    assert list(predictor.stream("x?", image, max_new_tokens=4, abstain_below=1.0)) == [ABSTENTION]
    stored = predictor.with_calibration(Calibration(threshold=1.0))
    assert stored.answer("x?", image, max_new_tokens=4, abstain_below="stored") == ABSTENTION


@pytest.mark.parametrize(
    ("value", "message"),
    [("stored", "stores no threshold"), (1.5, "from 0 to 1"), (True, "from 0 to 1"), ("x", "from 0 to 1")],
)
def test_wrong_thresholds_are_refused(predictor, media, value, message):
    with pytest.raises(RecipeError, match=message):
        predictor.answer("x?", [str(media / "a.png")], abstain_below=value)


@pytest.mark.parametrize("choices", [False, True])
def test_predictions_keep_what_was_withheld(predictor, records, tmp_path, choices):
    for name, below in (("all", None), ("none", 1.0)):
        options = GenerationOptions(4, abstain_below=below)
        predict_file(predictor, records / "test.jsonl", tmp_path / f"{name}.jsonl", options=options, choices=choices)
    given, withheld = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("all", "none")
    )
    assert [row["withheld"] for row in withheld] == [row["prediction"] for row in given]
    assert {row["prediction"] for row in withheld} == {""}
    assert all(row["abstained"] for row in withheld)
    assert "abstained" not in given[0]
    note = json.loads((tmp_path / "all.jsonl.run.json").read_text())
    assert "abstain_below" not in note["options"]  # so that older files can be continued


class Sure(Predictor):
    """Answers every question with the word in it, wrongly about picture c, and is as sure as the picture's letter says."""

    def generate(self, encoded, options, keys=None):
        answers = []
        for key in keys:
            _, letter, word = key.split("-")
            right = letter != "c"
            said = word if right else {"yes": "no", "no": "yes"}[word]
            answers.append(Answer(said, [1], {"a": 0.9, "b": 0.8, "c": 0.4}[letter]))
        return answers

    def with_calibration(self, calibration):
        return Sure(self.model, self.processor, calibration)


def test_the_benchmark_chooses_on_validation_and_measures_on_test(predictor, records, tmp_path):
    sure = Sure(predictor.model, predictor.processor)
    entry = evaluate_model(sure, "calibration", records, tmp_path / "out")["benchmarks"]["calibration"]
    assert entry["model"]["coverage"]["value"] == pytest.approx(4 / 6)
    assert entry["model"]["selective_accuracy"]["value"] == 1.0
    assert entry["model"]["closed_accuracy"]["value"] == pytest.approx(4 / 6)
    assert entry["model"]["brier"]["value"] == pytest.approx((0.01 * 2 + 0.04 * 2 + 0.16 * 2) / 6)
    assert entry["model"]["nll"]["value"] <= entry["controls"]["uncalibrated"]["nll"]["value"]
    assert entry["closed"]["reliability"]["risk_coverage"]["points"][-1] == [1.0, pytest.approx(1 / 3, abs=1e-3)]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Risk over coverage" in page
    assert "Brier score" in page
    (records / "validation.jsonl").unlink()
    with pytest.raises(DataError, match=r"Put a file validation\.jsonl"):
        evaluate_model(sure, "calibration", records, tmp_path / "other", roots=MediaRoots(records))
