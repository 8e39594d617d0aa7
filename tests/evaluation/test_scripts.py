"""Word metrics in scripts other than Latin, and on very long texts."""

from __future__ import annotations

import time

import pytest

from medmvl.evaluation import evaluate_predictions
from medmvl.evaluation.scripts import is_chinese, is_mostly_latin, letter_words, spaced_words
from medmvl.files import write_jsonl

# A reference, and an answer that differs in one word (in scripts without spaces: in one or two characters).
SENTENCES = {
    "Russian": ("Признаков пневмоторакса нет", "Признаков отека нет"),
    "Korean": ("왼쪽 폐에 결절이 있습니다", "오른쪽 폐에 결절이 있습니다"),
    "Hindi": ("बाएं फेफड़े में गांठ है।", "दाएं फेफड़े में गांठ है।"),
    "Arabic": ("لا يوجد انصباب جنبي", "لا يوجد انصباب تاموري"),
    "Greek": ("Δεν υπάρχει πλευριτική συλλογή", "Δεν υπάρχει περικαρδιακή συλλογή"),
    "Thai": ("ไม่พบน้ำในช่องเยื่อหุ้มปอด", "ไม่พบน้ำในช่องเยื่อหุ้มใจ"),
    "Chinese": ("左肺有结节。", "右肺有结节。"),
    "Japanese": ("左肺に結節があります", "右肺に結節があります"),
    "Hebrew": ("אין תפליט פלאורלי", "אין תפליט פריקרדיאלי"),
    "Ukrainian": ("Ознак пневмотораксу немає", "Ознак набряку немає"),
    "German": ("Kein Pleuraerguss, Ödem", "Kein Perikarderguss, Ödem"),
    "Vietnamese": ("Không có tràn dịch màng phổi", "Không có tràn dịch màng tim"),
}
WORD_METRICS = ("rouge-1", "rouge-2", "rouge-l", "bleu1-nltk-mean", "bleu1-hf-mean-13a", "token-f1-unimed", "accuracy",
                "rouge-l-coco-ptb", "rouge-l-coco-whitespace", "bleu1-coco-corpus-ptb", "open-f1", "open-recall")  # fmt: skip


@pytest.mark.parametrize("metric", WORD_METRICS)
@pytest.mark.parametrize("language", SENTENCES)
def test_identical_answers_score_one(score, metric, language):
    reference, _ = SENTENCES[language]
    assert score(metric, (reference, reference), answer_type="OPEN") == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("metric", ["rouge-l", "bleu1-nltk-mean", "token-f1-unimed", "meteor-exact-stem"])
@pytest.mark.parametrize("language", SENTENCES)
def test_one_wrong_word_scores_between_zero_and_one(score, metric, language):
    reference, answer = SENTENCES[language]
    assert 0.3 < score(metric, (answer, reference)) < 1


def test_punctuation_does_not_count_in_any_script(score):
    assert score("token-f1-unimed", ("बाएं में है", "बाएं में है।")) == 1
    assert score("accuracy", ("لا يوجد", "لا يوجد؟")) == 1


def test_spaced_words_split_unspaced_scripts_only():
    assert spaced_words("左肺，CT") == "左 肺 , CT"
    assert spaced_words("ที่ปอด") == "ที่ ป อ ด"
    assert spaced_words("गांठ है।") == "गांठ है ."
    assert letter_words("Kein Ödem, T1-weighted") == ["kein", "ödem", "t1", "weighted"]


def test_scripts_are_recognized():
    assert is_chinese("左肺")
    assert not is_chinese("左肺に")
    assert is_mostly_latin("\u03b2-blocker, 5 µm")
    assert not is_mostly_latin("отек CT")


def long_rows():
    common = {"patient": "p", "question": "Is there air?", "answer": "yes", "prediction": "no"}
    texts = [
        {"answer": "a " * 50_000},
        {"question": "a" + " " * 100_000 + "?"},
        {"prediction": "no " * 33_000},
        {"answer": "lung nodule " * 8_000, "prediction": "nodule in the lung " * 5_000},
        {"question": "Left " * 20_000 + "or right?", "answer": "right", "answer_type": "CLOSED"},
        {"prediction": "(" * 50_000 + "_" * 50_000},
    ]
    return [{**common, **text, "id": str(number)} for number, text in enumerate(texts)]


def test_texts_of_100_000_characters_take_seconds(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", long_rows())
    begun = time.process_time()
    evaluate_predictions(tmp_path / "p.jsonl", "own", tmp_path / "out")
    assert time.process_time() - begun < 20
