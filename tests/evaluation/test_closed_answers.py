"""Closed answers are read strictly: who commits to nothing, or to both, is wrong."""

from __future__ import annotations

import pytest

from medmvl.evaluation.breakdown import closed_answers
from medmvl.evaluation.items import read_items
from medmvl.evaluation.metrics.choice import has_letter, letter_correct
from medmvl.evaluation.metrics.choice_letters import stated_letter
from medmvl.evaluation.metrics.vqa import closed_correct, is_closed, options_of
from medmvl.files import write_jsonl


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
        ("**Yes**", "yes", 1),
        ("_no_", "no", 1),
        ("Yes\u2026", "yes", 1),
        ("\uff2e\uff4f\uff0c\u6ca1\u6709", "no", 1),  # full-width letters and comma
        ("yes\u3002", "yes", 1),
        ("Yes\uff08certain\uff09", "yes", 1),
        ("&quot;Yes&quot;", "yes", 1),
        ("**Answer:** Yes, no other", "yes", 1),
        ("The answer is no: yes would be wrong.", "no", 1),
        ("Yes \u2014 no effusion elsewhere", "yes", 1),
        ("**No**, but yes in the prior", "no", 1),
        ("\u201cYes\u201d", "yes", 1),
        ("<answer>no</answer>", "no", 1),
        ("no-contrast CT", "yes", 0),
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
        ("The correct answer is C.", "c"),
        ("The answer is c", "c"),
        ("Answer is: B", "b"),
        ("Answer: B mild effusion", "b"),
        ("Answer: A nodule", None),
        ("The answer is a lung nodule", None),
        ("The answer is not (a)", None),
        ("**Answer:** B", "b"),
        ("**B**", "b"),
        ("`B`", "b"),
        ("[B]", "b"),
        ('"B"', "b"),
        (r"\boxed{B}", "b"),
        (r"$\boxed{\text{C}}$", "c"),
        ("<answer>B</answer>", "b"),
        ("<think>maybe (a)</think>B", "b"),
        ("C\n\nExplanation: the nodule", "c"),
        ("b. mild. Not (c).", "b"),
        ("B - mild", "b"),
        ("B is correct", "b"),
        ("Option D", "d"),
        ("The correct option is B.", "b"),
        ("My answer is B because (a) is wrong", "b"),
        ("A, B", None),
        ("Both (a) and (b)", None),
        ("I cannot say", None),
        ("答案是B", "b"),
        ("答案：B", "b"),
        ("（B）左肺", "b"),
        ("a nodule", None),
        ("A nodule in the lung", None),
        ("mild", None),
        ("", None),
    ],
)
def test_stated_letter(text, letter):
    assert stated_letter(text) == letter


@pytest.mark.parametrize("kind", ["CLOSED ", "closed-ended", "Closed Ended", "close_ended", "Yes/No"])
def test_spellings_of_closed(item, kind):
    assert is_closed(item("", "CT", answer_type=kind))


def test_an_unknown_answer_type_is_a_fault(tmp_path):
    rows = [{"id": str(n), "question": "Is it?", "answer": "yes", "prediction": "yes", "answer_type": kind}
            for n, kind in enumerate(["CLOSED ", "open-ended", "clsoed", 3])]  # fmt: skip
    write_jsonl(tmp_path / "p.jsonl", rows)
    items, faults = read_items(tmp_path / "p.jsonl")
    assert [item.id for item in items] == ["0", "1"]
    assert faults.to_dict() == {"answer_type is neither closed nor open": {"count": 2, "first": ["2", "3"]}}


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("(b)", 1),
        ("The finding is (b).", 1),
        ("B. mild", 1),
        ("Hepatitis (c) and (b)", 1),  # the question offers a and b only
        ("(a) and (b)", 0),
        ("mild", 0),
    ],
)
@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("How severe? (a) none (b) mild", None),
        ("How severe?\nA. none\nB. mild", None),
        ("How severe?", {"A": "none", "B": "mild"}),
        ("How severe?", ["none", "mild"]),
    ],
)
def test_only_offered_letters_are_options(item, prediction, right, question, options):
    asked = item(prediction, "(b) mild", question, **({"options": options} if options else {}))
    assert letter_correct(asked) == right


def test_a_bracketed_letter_in_prose_is_no_option(item):
    assert not has_letter(item("", "Hepatitis (c) virus", "What is the cause?"))
    assert not has_letter(item("", "T. solium", "Which parasite?"))
    assert has_letter(item("", "(b) mild", "How severe?"))


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


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("B", 1),
        ("The correct answer is (b).", 1),
        ("focal uptake", 1),
        ("A", 0),
        ("(a) Diffuse uptake", 0),
        ("diffuse uptake or focal uptake", 0),
    ],
)
def test_choices_are_closed_answers_by_letter_or_text(item, prediction: str, right: int) -> None:
    asked = item(
        prediction,
        "(b) Focal uptake",
        "What is seen? (a) Diffuse uptake (b) Focal uptake",
        answer_type="CLOSED",
        options={"A": "Diffuse uptake", "B": "Focal uptake"},
        answer_choice="B",
    )
    assert closed_correct(asked) == right


def test_auroc_of_yes_no_probabilities(item):
    given = (("yes", 0.8, 0.1), ("no", 0.6, 0.2), ("yes", 0.5, 0.5), ("no", 0.1, 0.9))
    items = [
        item(truth, truth, id=str(n), probabilities={"yes": yes, "no": no}) for n, (truth, yes, no) in enumerate(given)
    ]
    assert closed_answers(items)["auroc"] == {"value": pytest.approx(0.75), "n": 4}
    assert closed_answers([*items, item("yes", "yes", id="x")])["auroc"]["n"] == 4
    assert closed_answers(items[:1])["auroc"] is None


OFFER = "What is it? (a) mild (b) moderate (c) severe (d) none"


@pytest.mark.parametrize(
    "said",
    ["I would choose b.", "The answer is b because a is wrong.", "'b'", "B\n\nExplanation: mild would be (a).", "It's B.", "(b",
     "Selected: B", "I pick option b.", "The option to select: (b)", "I would not choose c. It is b.", "\u201cB\u201d"],
)  # fmt: skip
def test_further_forms_of_a_choice(item, said):
    assert letter_correct(item(said, "(b) moderate", OFFER)) == 1


@pytest.mark.parametrize(
    "said",
    ["I select (a) or (b).", "Answer: (b) or (c)", "A: B", "It is a mild case, not severe.", "Selection bias.", "It's moderate.",
     "I would not choose b.", "b\u2019s sign", "I pick (c)."],
)  # fmt: skip
def test_what_commits_to_no_choice_or_another(item, said):
    assert letter_correct(item(said, "(b) moderate", OFFER)) == 0
