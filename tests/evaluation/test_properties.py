"""What must hold for every metric, whatever the texts: order does not matter, perfect is 1, empty is 0."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.evaluation.items import Item
from medmvl.evaluation.metrics import METRICS
from medmvl.evaluation.scoring import score_metric

WORDS = ["left", "right", "lung", "nodule", "effusion", "no", "mild", "5", "mm", "opacity", "左", "肺"]
sentence = st.lists(st.sampled_from(WORDS), min_size=4, max_size=9).map(" ".join)
FINDINGS = ("Lung nodule", "Pleural effusion", "Lung opacity")
# How to write a reference of each kind, given a drawn sentence: what the metric expects to find in it.
LETTERED = [name for name in METRICS if name.startswith("letter-accuracy")]
BOXED = ["miou", "acc-iou50", "miou-unimed"]
LABELED = [name for name in METRICS if name.startswith("label-f1")]
CLOSED = [name for name in METRICS if name.startswith("closed-accuracy")]
WORDED = [name for name in METRICS if name not in (*LETTERED, *BOXED, *LABELED, *CLOSED)]
# METEOR's chunk penalty keeps even a perfect answer a little below 1; CIDEr's scale is 0 to 10.
BELOW_ONE = {"meteor-exact-stem": 0.99, "meteor-m3d": 0.99}
#: Of the model's confidences, which these predictions do not hold: nothing is scored.
CONFIDENCES = {"accuracy-at-threshold", "brier-of-the-answer", "coverage-at-threshold", "ece-10-bins"}
UNBOUNDED = {"cider-d-corpus-ptb", "cider-d-corpus-whitespace"}


def reference_for(name: str, text: str, number: int) -> str:
    if name in LETTERED:
        return f"({'abcd'[number % 4]}) {'ABCD'[number % 4]}. {text}"
    if name in BOXED:
        return f"{{<{10 + number}><20><{50 + number}><70>}}"
    if name in CLOSED:
        return "yes" if number % 2 else "no"
    return text


def make_items(name: str, texts: list[str], answers: list[str] | None = None) -> list[Item]:
    references = [reference_for(name, text, number) for number, text in enumerate(texts)]
    said = answers if answers is not None else references
    record = {"answer_type": "CLOSED" if name in CLOSED else "OPEN", "image_size": [200, 100]}
    items = []
    for number, (reference, answer) in enumerate(zip(references, said, strict=True)):
        chinese = any(character > "\u3000" for character in reference)
        labels = {finding: int(finding.split()[-1] in reference) for finding in FINDINGS} if name in LABELED else {}
        extra = {**record, "labels": labels, "predicted_labels": {f: int(f.split()[-1] in answer) for f in FINDINGS}}
        items.append(Item(f"i{number}", "?", reference, answer, f"p{number // 2}", extra, chinese))
    return items


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=6, deadline=None)
@given(texts=st.lists(st.tuples(sentence, sentence), min_size=2, max_size=8), seed=st.integers(0, 99))
def test_the_order_of_items_changes_nothing(name, texts, seed):
    items = make_items(name, [truth for truth, _ in texts], [said for _, said in texts])
    moved = items.copy()
    random.Random(seed).shuffle(moved)
    first, second = score_metric(METRICS[name], items), score_metric(METRICS[name], moved)
    assert (first.n, first.dropped, first.empty) == (second.n, second.dropped, second.empty)
    assert first.ci95 == second.ci95
    assert first.value == second.value or math.isnan(first.value + second.value)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=6, deadline=None)
@given(texts=st.lists(sentence, min_size=2, max_size=6))
def test_a_perfect_prediction_scores_one(name, texts):
    score = score_metric(METRICS[name], make_items(name, texts))
    if name in LABELED and math.isnan(score.value):
        return  # no drawn sentence names a finding: F1 is not defined
    if name in CONFIDENCES:
        assert math.isnan(score.value)
    elif name in UNBOUNDED:
        assert score.value >= 0
    elif name in BELOW_ONE:
        assert BELOW_ONE[name] <= score.value <= 1
    else:
        assert score.value == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=6, deadline=None)
@given(texts=st.lists(sentence, min_size=2, max_size=6))
def test_an_empty_prediction_scores_zero_or_is_dropped(name, texts):
    score = score_metric(METRICS[name], make_items(name, texts, [""] * len(texts)))
    assert score.empty == len(texts)
    if math.isnan(score.value):  # COCO on PTB tokens drops empty answers, and says how many; label F1 may lack findings
        assert name in LABELED or score.dropped == len(texts)
    else:
        assert score.value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in METRICS if name not in UNBOUNDED])
@settings(max_examples=6, deadline=None)
@given(texts=st.lists(st.tuples(sentence, sentence), min_size=2, max_size=6))
def test_every_value_is_a_fraction(name, texts):
    score = score_metric(METRICS[name], make_items(name, [truth for truth, _ in texts], [said for _, said in texts]))
    assert math.isnan(score.value) or 0 <= score.value <= 1 + 1e-12
