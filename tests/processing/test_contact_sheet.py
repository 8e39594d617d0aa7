"""`data show`: sides, aspect ratio, history and faults are on the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from imaging.dicom_writing import random_hu, write_series
from medmvl.cli.main import app
from medmvl.imaging import Volume, Window
from medmvl.imaging.preprocessing.rendering import PLANES, draw_plane, histogram
from medmvl.processing.contact_sheet import write_contact_sheet


def marked(code: str) -> Volume:
    """A bright block at the patient's left, front and top; 4 mm slices of 1 mm pixels, stored in any orientation."""
    hu = np.full((10, 40, 40), -1000, dtype=np.int16)
    hu[7:, :14, 27:] = 1000
    return Volume.from_array(hu, units="HU", spacing=(4.0, 1.0, 1.0), orientation="SPL").to_orientation(code)


@pytest.mark.parametrize("code", ["SPL", "RAS", "ILA", "PIR"])
def test_the_marker_lies_where_the_letters_say(code: str) -> None:
    volume = marked(code)
    for plane, place in (("axial", 0.9), ("coronal", 0.1), ("sagittal", 0.9)):
        picture = draw_plane(volume, plane, place, Window(0, 2000))  # type: ignore[arg-type]
        bright = np.argwhere(picture.pixels > 128)
        row, column = bright.mean(axis=0) / picture.pixels.shape
        assert (picture.left if column < 0.5 else picture.right) in "LA"
        assert (picture.top if row < 0.5 else picture.bottom) in "AS"
        assert {picture.left, picture.right} == ({"A", "P"} if plane == "sagittal" else {"L", "R"})
    assert draw_plane(volume, "axial", 0.5, Window(0, 2000)).left == "R"  # as radiologists look at it


def test_aspect_ratio_is_true() -> None:
    for plane in PLANES:
        height, width = draw_plane(marked("RAS"), plane, 0.5, Window(0, 2000), longest=80).pixels.shape
        assert (height, width) == (80, 80)  # 40 mm in all three directions, from 10 slices and 40 pixels


def test_histogram_counts_voxels() -> None:
    counts, edges = histogram(marked("SPL"))
    assert len(edges) == len(counts) + 1
    assert counts.argmax() == np.searchsorted(edges, -1000) - 1
    constant = Volume.from_array(np.full((3, 4, 5), 7), units="arbitrary")
    assert histogram(constant)[0].sum() > 0


def test_page_shows_records_media_and_faults(tmp_path: Path) -> None:
    write_series(tmp_path / "series", random_hu((8, 20, 24)))
    np.save(tmp_path / "bare.npy", random_hu())
    np.save(tmp_path / "air.npy", np.full((3, 8, 8), -1024, dtype=np.int16))
    PIL.Image.new("RGB", (30, 20), (10, 200, 30)).save(tmp_path / "p.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "p.png").read_bytes()[:40])
    turns = [{"from": "human", "value": "<image3d> <b>What</b>?"}, {"from": "gpt", "value": "Nothing & all."}]
    image_turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "Green."}]
    records = [
        {"id": "one", "conversations": turns, "image3d": ["series"]},
        {"id": "two", "conversations": turns, "image3d": ["bare.npy"]},
        {"id": "three", "conversations": turns, "image3d": ["air.npy"]},
        {"id": "four", "conversations": image_turns, "image": "p.png"},
        {"id": "five", "conversations": image_turns, "image": "cut.png"},
        {"id": "six", "conversations": image_turns, "image": "absent.png"},
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    command = ["data", "show", str(tmp_path / "data.json"), "--out", str(tmp_path / "page.html")]
    result = CliRunner().invoke(app, [*command, "--geometry", "medm-vl-ct"])
    assert result.exit_code == 1
    assert "3 records or files could not be shown" in result.output
    page = (tmp_path / "page.html").read_text()
    for words in (
        "&lt;b&gt;What&lt;/b&gt;",  # texts are data, not markup
        "Nothing &amp; all.",
        "lung window [-1350, 150] HU",
        "2 x 0.8 x 0.7 mm",
        "what the model sees, medm-vl-ct (1, 32, 256, 256)",
        "read DICOM series CT axial, 8 slices of 20x24",
        "cropped to the foreground box",
        "spacing unknown",
        "no voxel is above",
        "cut.png",
        "absent.png",
        '<i class="l">R</i><i class="r">L</i>',
    ):
        assert words in page, words
    assert 'src="http' not in page
    assert "Secret" not in page
    assert CliRunner().invoke(app, [*command, "--records", "2"]).exit_code == 0


def test_long_conversation_does_not_hide_the_picture(tmp_path):
    PIL.Image.new("L", (20, 10), 90).save(tmp_path / "p.png")
    turns = [{"from": who, "value": f"turn {n} of {who}"} for n in range(7) for who in ("human", "gpt")]
    turns[0]["value"] = "<image>\n" + turns[0]["value"]
    record = {"id": "long", "conversations": turns, "image": "p.png"}
    (tmp_path / "d.jsonl").write_text(json.dumps(record) + "\n")
    write_contact_sheet(tmp_path / "d.jsonl", tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text()
    assert page.index("<img") < page.index("turn 0 of human")
    shown, folded = page.split("<details><summary>6 more turns</summary>")
    assert "turn 3 of gpt" in shown
    assert "turn 4 of human" in folded
    assert page.count("turn 6 of gpt") == 1
