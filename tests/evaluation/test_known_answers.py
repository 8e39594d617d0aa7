"""Every scorer against values computed with the packages that the published scorers used (versions in the ids).

The numbers were run with rouge-score 0.1.2, sacrebleu 2.6.0, nltk 3.10.4, pycocoevalcap 1.2; see docs/evaluation.md.
"""

from __future__ import annotations

import pytest

from medmvl.evaluation.metrics.boxes import box_iou, box_text, parse_boxes
from medmvl.evaluation.metrics.ptb import ptb_tokens
from medmvl.evaluation.text import normalize_word

PAIRS = [
    ("the cat sat on the mat", "the cat is on the mat"),
    ("testing one two", "testing"),
    ("No pleural effusion .", "There is no pleural effusion ."),
    ("No pleural effusion.", "There is no pleural effusion."),
    ("left lung", "left lung"),
    ("right lung", "left lung"),
    ("lung", "left lung"),
    ("yes", "Yes"),
    ("mild cardiomegaly with small left pleural effusion", "small left pleural effusion and mild cardiomegaly"),
]
EXACT = 1e-6  # the table holds six decimals


@pytest.mark.parametrize(
    ("pair", "expected"),
    zip(PAIRS, [0.833333, 0.5, 0.75, 0.75, 1, 0.5, 0.666667, 1, 0.571429], strict=True),
)
def test_rouge_l_is_that_of_rouge_score(score, pair, expected):
    assert score("rouge-l", pair) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(
    ("pair", "expected"),
    zip(PAIRS, [0.833333, 0.5, 0.75, 0.75, 1, 0.5, 0.666667, 1, 0.857143], strict=True),
)
def test_rouge_1_is_that_of_rouge_score(score, pair, expected):
    assert score("rouge-1", pair) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(
    ("pair", "expected"),
    zip(PAIRS, [0.833333, 0.333333, 0.454898, 0.342278, 1, 0.5, 0.367879, 0, 0.857143], strict=True),
)
def test_coco_bleu1_of_a_single_item(score, pair, expected):
    assert score("bleu1-coco-corpus-whitespace", pair) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(("index", "expected"), [(0, 0.00008), (2, 0.000076), (4, 0.001), (8, 0.488923)])
def test_coco_bleu4_of_a_single_item(score, index, expected):
    assert score("bleu4-coco-corpus-whitespace", PAIRS[index]) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(
    ("pair", "expected"),
    zip(PAIRS, [0.833333, 0.54955, 0.579114, 0.478431, 1, 0.5, 0.628866, 0, 0.571429], strict=True),
)
def test_coco_rouge_l(score, pair, expected):
    assert score("rouge-l-coco-whitespace", pair) == pytest.approx(expected, abs=EXACT)


def test_the_coco_corpus_values_of_all_nine_pairs(score):
    assert score("bleu1-coco-corpus-whitespace", *PAIRS) == pytest.approx(0.652972, abs=EXACT)
    assert score("bleu4-coco-corpus-whitespace", *PAIRS) == pytest.approx(0.317231, abs=EXACT)
    assert score("rouge-l-coco-whitespace", *PAIRS) == pytest.approx(0.571191, abs=EXACT)


def test_corpus_and_mean_differ_as_published(score):
    pairs = [("no pleural effusion", "no pleural effusion"), ("lung", "the left lung is clear")]
    assert score("bleu1-coco-corpus-whitespace", *pairs) == pytest.approx(0.367879, abs=EXACT)
    single = [score("bleu1-coco-corpus-whitespace", pair) for pair in pairs]
    assert sum(single) / 2 == pytest.approx(0.509158, abs=EXACT)


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (("No pleural effusion.", "There is no pleural effusion."), 0.454898),
        (("(a) Severe recessions", "(b) Mild recessions"), 0.6),
        (("Yes.", "Yes, the trachea and both main bronchi are open."), 0.011109),
        (PAIRS[0], 0.833333),
        (("", "anything"), 0.0),
    ],
)
def test_hugging_face_bleu1(score, pair, expected):
    assert score("bleu1-hf-mean-13a", pair) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The left lung.", "left lung"),
        ("Yes, it is", "yes it is"),
        ("X-ray", "x ray"),
        ("None", "0"),
        ("two", "2"),
        ("1,000 ml", "1000 ml"),
        ("3.5 cm", "3.5 cm"),
        ("T1-weighted MRI (axial)", "t1 weighted mri axial"),
        ("dont know", "don't know"),
        ("a/b", "b"),
        ("kidney-left", "kidney left"),
        ("." * 40, "." * 8),  # the flag passed as a count: 32 full stops go, the rest stay
        ("couldnt've it's", "couldn't've it's"),
    ],
)
def test_normalize_word(text, expected):
    assert normalize_word(text) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "f1", "bleu", "contains", "equal"),
    [
        ("The left lung.", "left lung", 1, 1, 1, 1),
        ("lung", "left lung", 0.666667, 0.367879, 0, 0),
        ("yes", "Yes", 1, 1, 1, 1),
        ("it is the left lower lobe of the lung", "left lower lobe", 0.6, 0.428571, 1, 0),
        ("lung lung lung", "lung", 1, 0.333333, 1, 0),
    ],
)
def test_the_unimed_profile(score, prediction, reference, f1, bleu, contains, equal):
    pair = (prediction, reference)
    assert score("token-f1-unimed", pair) == pytest.approx(f1, abs=EXACT)
    assert score("bleu1-nltk-mean", pair) == pytest.approx(bleu, abs=EXACT)
    assert score("accuracy", pair) == equal
    assert score("closed-accuracy-contains", pair, answer_type="CLOSED") == contains


@pytest.mark.parametrize(
    ("first", "second", "inclusive", "standard"),
    [
        ((0, 0, 9, 9), (5, 5, 14, 14), 0.142857, 0.109589),
        ((3, 4, 9, 9), (3, 4, 9, 9), 1, 1),
        ((0, 0, 10, 10), (10, 10, 20, 20), 0.004149, 0),
        ((0, 0, 1, 1), (8, 8, 9, 9), 0, 0),
        ((10, 20, 110, 220), (20, 40, 120, 200), 0.668660, 0.666667),
    ],
)
def test_box_iou(first, second, inclusive, standard):
    assert box_iou(first, second, inclusive=True) == pytest.approx(inclusive, abs=EXACT)
    assert box_iou(first, second) == pytest.approx(standard, abs=EXACT)


def test_box_text_truncates_and_reads_back():
    text = box_text(56, 73, 190, 142, (512, 512))
    assert text == "{<10><14><48><41>}"
    assert parse_boxes("It is at {<10> <14>\n<unk><48><41>} there.", (200, 100)) == [pytest.approx((20, 14, 96, 41))]


def test_ptb_tokens():
    text = 'No pleural effusion. The heart is 1.5-cm (mild); "stable", left/right?'
    expected = "no pleural effusion the heart is 1.5-cm -lrb- mild -rrb- stable left/right"
    assert " ".join(ptb_tokens(text)) == expected
    assert ptb_tokens("don't") == ["do", "n't"]
