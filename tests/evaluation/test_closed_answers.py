"""Closed answers are read strictly: who commits to nothing, or to both, is wrong."""

from __future__ import annotations

import pytest

from medmvl.evaluation.breakdown import closed_answers
from medmvl.evaluation.metrics.choice import stated_letter
from medmvl.evaluation.metrics.vqa import closed_correct, is_closed, options_of


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("Yes", "yes", 1),
        ("yes.", "Yes", 1),
        ("Yes, there is no pneumothorax but an effusion.", "yes", 1),
        ("No", "no", 1),
        ("There is no effusion", "no", 1),
        ("not sure", "no", 0),
        ("unknown", "no", 0),
        ("yes and no", "yes", 0),
        ("yes no", "yes", 0),
        ("no", "yes", 0),
        ("", "no", 0),
        ("normal", "no", 0),
    ],
)
def test_yes_and_no(item, prediction, reference, right):
    assert closed_correct(item(prediction, reference, "Is there an effusion?", answer_type="CLOSED")) == right


@pytest.mark.parametrize(
    ("prediction", "right"),
    [("left", 1), ("On the left.", 1), ("Left side", 1), ("right", 0), ("left or right", 0), ("leftover", 0), ("", 0)],
)
@pytest.mark.parametrize(
    "question",
    [
        "On which side is the nodule, left or right?",
        "Is the nodule on the left or right?",
        "Left, or right?",
        "Is the nodule on the left or the right side?",
        "Is the nodule on the right or the left side?",
    ],
)
def test_two_way_choices(item, prediction, right, question):
    assert closed_correct(item(prediction, "left", question, answer_type="CLOSED")) == right


def test_options_of_several_words(item):
    question = "Is it in the left or right lung?"
    assert closed_correct(item("right lung", "right lung", question, answer_type="CLOSED")) == 1
    assert closed_correct(item("the left lung", "right lung", question, answer_type="CLOSED")) == 0
    assert closed_correct(item("left lung or right lung", "right lung", question, answer_type="CLOSED")) == 0


def test_a_choice_without_stated_options_needs_equality(item):
    assert closed_correct(item("CT scan", "CT", "Which modality?", answer_type="CLOSED")) == 0
    assert closed_correct(item("ct", "CT", "Which modality?", answer_type="CLOSED")) == 1


def test_options_may_stand_in_the_record(item):
    asked = item(
        "It shows the upper lobe", "upper lobe", "Where?", answer_type="CLOSED", options=["lobe", "upper lobe"]
    )
    assert options_of(asked) == ["lobe", "upper lobe"]
    assert closed_correct(asked) == 1  # "lobe" occurs only inside the longer option


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("是的。", "是", 1),
        ("没有", "不存在", 1),
        ("有", "没有", 0),
        ("左肺", "左肺", 1),
        ("左肺，", "左肺", 1),
        ("", "否", 0),
    ],
)
def test_chinese(item, prediction, reference, right):
    asked = item(prediction, reference, "有积液吗？", answer_type="CLOSED", q_lang="zh")
    assert asked.chinese
    assert closed_correct(asked) == right


def test_what_is_closed(item):
    assert is_closed(item("", "CT", answer_type="CLOSED"))
    assert is_closed(item("", "Yes", answer_type="yes/no"))
    assert is_closed(item("", "No."))
    assert not is_closed(item("", "yes", answer_type="OPEN"))
    assert not is_closed(item("", "left lung"))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(b) Mild", "b"),
        ("The answer is (B).", "b"),
        ("B", "b"),
        ("c) none", "c"),
        ("Answer: D.", "d"),
        ("(a) x (b) y", None),
        ("(a) as said (a)", "a"),
        ("a nodule", None),
        ("A nodule in the lung", None),
        ("mild", None),
        ("", None),
    ],
)
def test_stated_letter(text, letter):
    assert stated_letter(text) == letter


def test_the_reliability_tells_sure_from_right(item):
    rows = [("yes", "yes", 0.9)] * 3 + [("no", "yes", 0.9)] + [("yes", "no", 0.55)] * 2
    asked = [item(*row[:2], "Is it?", id=str(n), confidence=row[2]) for n, row in enumerate(rows)]
    asked.append(item("no", "no", "Is it?", id="unrated"))
    found = closed_answers(asked)["reliability"]
    assert found["n"] == 6
    assert [(entry["n"], entry["accuracy"]) for entry in found["bins"]] == [(2, 0.0), (4, 0.75)]
    assert found["expected_calibration_error"] == pytest.approx((2 * 0.55 + 4 * 0.15) / 6)
    assert found["confidence"] == pytest.approx((4 * 0.9 + 2 * 0.55) / 6)
    assert found["accuracy"] == pytest.approx(0.5)
