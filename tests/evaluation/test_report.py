"""The page: one file, nothing fetched, texts escaped, pictures and boxes drawn."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from medmvl.data.roots import MediaRoots
from medmvl.evaluation import EvaluationOptions, evaluate_predictions
from medmvl.evaluation.curves import loss_curve
from medmvl.evaluation.headline import headline
from medmvl.evaluation.items import make_item
from medmvl.evaluation.pictures import PREDICTED_COLOR, TRUTH_COLOR, draw_case
from medmvl.evaluation.report import write_report
from medmvl.evaluation.results import score_benchmark
from medmvl.evaluation.scoring import Answers
from medmvl.evaluation.tasks import BENCHMARKS
from medmvl.files import read_json, write_jsonl

LOG = [
    {"stage": stage, "step": step, "loss": 3 / step, "lr": 1} for stage in ("align", "tune") for step in range(1, 30)
]


@pytest.fixture(scope="module")
def page(tmp_path_factory, phantom_rows, media):
    tmp_path = tmp_path_factory.mktemp("page")
    rows = [{**row, "image": ["a.png"]} for row in phantom_rows]
    rows[0]["prediction"] = "<script>alert('x')</script>"
    write_jsonl(tmp_path / "p.jsonl", rows)
    write_jsonl(tmp_path / "b.jsonl", [{**row, "prediction": "no"} for row in rows])
    evaluate_predictions(
        tmp_path / "p.jsonl", "phantom-2d", tmp_path / "out", {"blank": tmp_path / "b.jsonl"},
        roots=MediaRoots(image=media), options=EvaluationOptions(log=LOG),
    )  # fmt: skip
    return tmp_path / "out" / "report.html"


def test_the_page_stands_alone(page):
    text = page.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']+""", text)
    assert "@import" not in text
    assert "url(http" not in text


def test_the_page_shows_everything(page):
    text = page.read_text()
    for expected in ("Synthetic data", "closed accuracy", "owed to the image", "blank", "majority", "Worst answers",
                     "What the image changed most", "align", "tune", "By finding", "data:image/jpeg"):  # fmt: skip
        assert expected in text
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_page_can_be_made_again_from_the_folder(page):
    before = page.read_text()
    page.unlink()
    write_report(page.parent)
    assert page.read_text() == before


def test_cases_are_chosen_as_said(page):
    cases = read_json(page.parent / "details" / "phantom-2d.json")["cases"]
    worst = [case for case in cases if case["kind"] == "worst"]
    assert worst
    assert all(case["score"] < 1 for case in worst)
    assert {case["task"] for case in worst} >= {"vqa", "refer"}
    assert len({case["id"] for case in cases}) == len(cases)
    assert all(case["controls"] == {"blank": "no"} for case in cases)


def test_answer_that_a_control_also_gives_is_no_gain(tmp_path, phantom_rows, media):
    rows = [{**row, "prediction": row["conversations"][1]["value"]} for row in phantom_rows if row["task"] == "vqa"]
    write_jsonl(tmp_path / "p.jsonl", rows)
    write_jsonl(tmp_path / "wrong.jsonl", [{**row, "prediction": "nothing"} for row in rows])
    write_jsonl(tmp_path / "right.jsonl", rows)
    controls = {"blank": tmp_path / "wrong.jsonl", "shuffled": tmp_path / "right.jsonl"}
    evaluate_predictions(tmp_path / "p.jsonl", "phantom-2d", tmp_path / "out", controls)
    cases = read_json(tmp_path / "out" / "details" / "phantom-2d.json")["cases"]
    assert cases
    assert not [case for case in cases if case["kind"] == "changed"]


def pixels(picture):
    data = base64.b64decode(picture.uri.split(",")[1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def near(array, color):
    return np.abs(array - np.array(color)).sum(-1) < 90


def test_boxes_are_drawn_where_they_are(item, tmp_path):
    Image.new("L", (200, 100)).save(tmp_path / "x.png")
    asked = item(
        "{<50><20><90><80>}", "{<10><10><50><60>}", boxes=[[20, 10, 80, 50]], image_size=[200, 100], image="x.png"
    )
    drawn = pixels(draw_case(asked, MediaRoots(image=tmp_path)))
    height, width, _ = drawn.shape
    assert (height, width) == (180, 360)
    rows, columns = np.nonzero(near(drawn, TRUTH_COLOR))
    assert columns.min() == pytest.approx(0.1 * width, abs=3)
    assert rows.max() == pytest.approx(0.6 * height, abs=3)
    rows, columns = np.nonzero(near(drawn, PREDICTED_COLOR))
    assert columns.max() == pytest.approx(0.9 * width, abs=3)
    assert rows.min() == pytest.approx(0.2 * height, abs=3)


def test_volumes_are_drawn_as_slices(item, media):
    picture = draw_case(item("a", "a", image3d=["a.npy"]), MediaRoots(volume=media))
    assert picture.uri.startswith("data:image/jpeg;base64,")
    assert pixels(picture).std() > 10
    assert "axial" in picture.note


@pytest.mark.parametrize(
    ("record", "note"),
    [({"image": ["gone.png"]}, "does not exist"), ({"image": ["../a.png"]}, "leaves the root"), ({}, "text only")],
)
def test_a_picture_that_is_not_there_is_said(item, media, record, note):
    picture = draw_case(item("a", "a", **record), MediaRoots(image=media / "..", volume=media))
    assert picture.uri is None
    assert note in picture.note


def test_a_loss_curve_is_deterministic_and_may_be_absent():
    assert loss_curve(LOG) == loss_curve(LOG)
    assert loss_curve(LOG).startswith("<svg")
    assert loss_curve([{"stage": "align", "step": 1}]) == ""


def evaluated(folder, rows, benchmark="own"):
    """Score rows and return the entry of results.json and the page."""
    write_jsonl(folder / "p.jsonl", rows)
    results = evaluate_predictions(folder / "p.jsonl", benchmark, folder / "out")
    return results["benchmarks"][benchmark], (folder / "out" / "report.html").read_text()


def questions(closed, opened, wrong=0):
    """Return rows of closed questions and of open ones with answers of two words, the first `wrong` of them wrong."""
    rows = [
        {"id": f"c{n}", "question": "Is it there?", "answer": "Yes", "answer_type": "CLOSED", "patient": f"p{n % 3}"}
        for n in range(closed)
    ]
    rows += [
        {"id": f"o{n}", "question": "What is it?", "answer": "left lung", "answer_type": "OPEN", "patient": f"p{n % 3}"}
        for n in range(opened)
    ]
    return [{**row, "prediction": "maybe" if n < wrong else row["answer"]} for n, row in enumerate(rows)]


def test_own_records_of_mostly_closed_questions_have_closed_accuracy_as_headline(tmp_path):
    entry, page = evaluated(tmp_path, questions(closed=6, opened=5))
    assert entry["headline"] == "closed_accuracy"
    assert headline("own", entry).startswith(
        "own: closed accuracy (strict) 1.000 [1.00, 1.00], n = 6 (the 6 closed of 11"
    )
    assert "the 6 closed of 11 questions" in page
    for few in (questions(closed=5, opened=5), questions(closed=4, opened=5)):
        assert evaluated(tmp_path, few)[0]["headline"] == "token_f1_unimed"


def test_headline_of_a_profile_stays_its_own(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", questions(closed=6, opened=1))
    options = EvaluationOptions(profile="llava-med")
    results = evaluate_predictions(tmp_path / "p.jsonl", "own", tmp_path / "out", options=options)
    assert results["benchmarks"]["own"]["headline"] == "open_recall"


def test_low_scores_of_one_word_answers_are_explained(tmp_path):
    _, page = evaluated(tmp_path, questions(closed=4, opened=2))
    table = (tmp_path / "out" / "table.md").read_text()
    for note in ("ROUGE-2 counts pairs of neighboring words, and one word has none", "METEOR takes off 0.5"):
        text = f"4 of 6 references are one word long. {note}"
        assert text in page
        assert f"- {text}" in table
    words = [row for row in questions(closed=4, opened=2) if row["id"].startswith("c")]
    alone = score_benchmark(BENCHMARKS["own"], Answers([make_item(row) for row in words]))["model"]
    assert (alone["rouge_2"]["value"], alone["meteor"]["value"]) == (0, 0.5)  # what the notes say of a right answer
    assert evaluated(tmp_path, questions(closed=0, opened=2))[0]["notes"] == []


def test_page_says_that_no_answer_is_wrong_only_if_none_is(tmp_path):
    _, page = evaluated(tmp_path, questions(closed=3, opened=2))
    assert "<h3>Worst answers</h3>" in page
    assert "No wrong answer: each of the 5 answers" in page
    _, page = evaluated(tmp_path, questions(closed=3, opened=2, wrong=1))
    assert "Worst answers" in page
    assert "No wrong answer" not in page


def test_wrong_answers_that_are_shown_elsewhere_are_not_denied(tmp_path):
    box = {"boxes": [[20, 10, 80, 50]], "image_size": [200, 100], "question": "Where?", "answer": "{<10><10><50><60>}"}
    rows = [{"id": f"b{n}", "patient": f"p{n}", "prediction": "{<10><10><50><50>}", **box} for n in range(2)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    write_jsonl(tmp_path / "b.jsonl", [{**row, "prediction": "maybe"} for row in rows])
    evaluate_predictions(tmp_path / "p.jsonl", "own", tmp_path / "out", {"blank": tmp_path / "b.jsonl"})
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No wrong answer" not in page
    assert "All answers that score below 1 are shown above." in page


def test_breakdowns_that_are_equal_are_shown_once(tmp_path):
    kinds = ["Position", "Position", "Abnormality", "Abnormality"]
    rows = [
        {**row, "question_type": kind, "content_type": kind} for row, kind in zip(questions(2, 2), kinds, strict=True)
    ]
    entry, page = evaluated(tmp_path, rows)
    assert entry["breakdown"]["question_type"] == entry["breakdown"]["content_type"]
    assert page.count("<summary>By question type and content type</summary>") == 1
    assert "<summary>By content type</summary>" not in page
    other = [{**row, "content_type": kind} for row, kind in zip(rows, reversed(kinds), strict=True)]
    other[0]["prediction"] = "No"
    page = evaluated(tmp_path, other)[1]
    assert "<summary>By question type</summary>" in page
    assert "<summary>By content type</summary>" in page


def test_page_explains_each_control_once(page):
    text = page.read_text()
    assert text.count("every image replaced by a constant") == 1
    assert "shuffled" not in text.replace("strongest of blank, shuffled and text only", "")  # it was not asked


def test_charts_have_room_for_their_labels(tmp_path):
    rows = [{**row, "confidence": 1.0} for row in questions(closed=3, opened=0)]
    _, page = evaluated(tmp_path, rows)
    chart = re.search(r'<figure class="chart">.*?</figure>', page, re.DOTALL)[0]
    left = float(re.search(r'viewBox="(-?\d+)', chart)[1])
    axis = float(re.search(r'<text x="(-?\d+)" y="100"', chart)[1])
    tick = float(re.search(r'<text x="(\d+)" y="[\d.]+" class="tick end">', chart)[1])
    widest = 6 * 6.2  # "0.0025", px at a font size of 10.5
    assert left <= axis - 9  # half of the rotated label's height above its baseline
    assert axis + 3 < tick - widest
    plot = re.search(r'<svg class="reliability" viewBox="0 (-?\d+) (\d+) ', page)
    dot = re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)" class="bin">', page)
    x, y, radius = map(float, dot.groups())
    assert y - radius >= float(plot[1])
    assert x + radius <= float(plot[2])
