"""Boxes in the text formats of other models."""

from __future__ import annotations

import time

import pytest

from medmvl.evaluation.metrics.foreign_boxes import FORMATS, foreign_boxes

SIZE = (200, 100)
BOX = (20, 20, 60, 40)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen-vl", "<ref>nodule</ref><box>(100,200),(300,400)</box>"),
        ("qwen-vl", "<|object_ref_start|>a<|object_ref_end|><|box_start|>(100, 200), (300, 400)<|box_end|>"),
        ("qwen2.5-vl", '```json\n[{"bbox_2d": [20, 20, 60, 40], "label": "nodule"}]\n```'),
        ("qwen2.5-vl", "{'bbox_2d': [20.0, 20, 60, 40]}"),
        ("qwen2.5-vl", '{"bbox":\n  [\n 20,\n 20,\n 60,\n 40\n]}'),
        ("qwen2.5-vl", "[20, 20, 60, 40]"),
        ("qwen3-vl", '{"bbox_2d": [100, 200, 300, 400]}'),
        ("list-fraction", "The nodule is at [0.1, 0.2, 0.3, 0.4]."),
        ("list-fraction", "[.1, .2, .3, .4]"),
        ("list-fraction", "[1.0e-1 2e-1 0.3 0.4]"),
        ("list-fraction", "(0.1,0.2),(0.3,0.4)"),
        ("list-fraction", "[[0.1,0.2],[0.3,0.4]]"),
        ("list-fraction", "x1=0.1, y1=0.2, x2=0.3, y2=0.4"),
        ("list-percent", "[10, 20, 30, 40]"),
        ("list-percent", "[10%, 20 %, 30%, 40%]"),
        ("list-thousandth", "<box>[[100,200,300,400]]</box>"),
        ("list-thousandth", "<box>100 200 300 400</box>"),
        ("list-pixel", "<20, 20, 60, 40>"),
        ("list-pixel", '{"x1": 20, "y1": 20, "x2": 60, "y2": 40}'),
        ("list-pixel", "xmin: 20; ymin: 20; xmax: 60; ymax: 40"),
    ],
)
def test_box_is_read(name, text):
    (box,) = foreign_boxes(name)(text, SIZE)
    assert box == pytest.approx(BOX)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("text", ["", "no box", "[1, 2, 3]", "grade 2, 3, 4, 5 of 9", "[a, b, c, d]"])
def test_no_box_is_invented(name, text):
    assert foreign_boxes(name)(text, SIZE) == []


def test_several_boxes_keep_their_order():
    text = "[1, 2, 3, 4] and [20, 20, 60, 40]; 30 slices"
    assert foreign_boxes("list-pixel")(text, SIZE) == [(1, 2, 3, 4), BOX]


@pytest.mark.parametrize(
    "text", ["[" * 20_000, "[1" + " " * 20_000, "(1 1" + " " * 20_000, "1 " * 10_000, "x1=1 " * 4_000]
)
def test_long_answers_are_read_in_time(text):
    start = time.thread_time()  # what other programs take does not count
    for name in FORMATS:
        foreign_boxes(name)(text, SIZE)
    assert time.thread_time() - start < 5
