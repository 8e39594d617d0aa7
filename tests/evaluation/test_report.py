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
from medmvl.evaluation.pictures import PREDICTED_COLOR, TRUTH_COLOR, draw_case
from medmvl.evaluation.report import write_report
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
