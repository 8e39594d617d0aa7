"""The demo: what is uploaded is looked at the right way round, asked about, and never another visitor's."""

from __future__ import annotations

import copy
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from medmvl import Predictor
from medmvl.data.phantoms import draw_patient, save_nifti, write_dicom_radiograph, write_dicom_series
from medmvl.errors import DataError
from medmvl.imaging import Volume
from medmvl.serving.demo import Demo, Session, build_page
from medmvl.serving.study import Study, load_study


@pytest.fixture(scope="module")
def demo(model_folder) -> Demo:
    return Demo(Predictor.from_pretrained(model_folder))


@pytest.fixture(scope="module")
def phantom():
    return draw_patient(0, 0, size=(12, 48, 48), film_size=64)


def test_an_image_is_shown_and_answered_about(demo, media):
    session = Session()
    demo.open(session, [str(media / "a.png")])
    assert demo.picture(session, "axial", 0, "full").shape == (
        460,
        552,
        3,
    )  # 40 x 48 pixels, brought to the view's height
    pieces = list(demo.ask(session, "What is seen?", 6))
    assert pieces[-1]


def test_a_nifti_file_opens_as_a_volume(demo, phantom, tmp_path):
    save_nifti(tmp_path / "ct.nii.gz", phantom)
    session = Session()
    assert "HU" in demo.open(session, [str(tmp_path / "ct.nii.gz")])
    assert session.study.slices == {"axial": 12, "coronal": 48, "sagittal": 48}
    assert list(demo.ask(session, "Is there a nodule?", 4))


def test_the_slices_of_a_dicom_series_come_one_by_one(demo, phantom, tmp_path):
    write_dicom_series(tmp_path / "series", phantom)
    files = sorted(str(path) for path in (tmp_path / "series").rglob("*") if path.is_file())
    session = Session()
    demo.open(session, files)
    assert session.study.volume.shape == (12, 48, 48)


def test_a_single_dicom_file_opens_as_an_image(demo, phantom, tmp_path):
    write_dicom_radiograph(tmp_path / "film.dcm", phantom)
    session = Session()
    demo.open(session, [str(tmp_path / "film.dcm")])
    assert session.study.image is not None


def test_the_head_is_at_the_top_and_a_pixel_is_square():
    array = np.full((4, 10, 10), -1000, dtype=np.int16)
    array[3] = 1000  # the slice next to the head
    volume = Volume.from_array(array, spacing=(5.0, 1.0, 1.0), units="HU", orientation="SPL")
    picture = Study(volume=volume).picture("coronal", 5, "full")
    assert picture.shape == (20, 10)
    assert picture[0].min() == 255
    assert picture[-1].max() == 0


def test_windows_change_what_is_seen():
    array = np.full((2, 4, 4), 40, dtype=np.int16)
    study = Study(volume=Volume.from_array(array, spacing=(1.0, 1.0, 1.0), units="HU", orientation="SPL"))
    assert study.picture(window="lung").min() == 236  # 40 HU in -1350..150
    assert study.picture(window="mediastinum").max() == 120  # 40 HU in -125..225


def test_nothing_uploaded_is_a_message(demo):
    with pytest.raises(DataError, match="Upload"):
        load_study([], "image")
    assert list(demo.ask(Session(), "  ", 4)) == ["Type a question first."]


def test_a_new_visitor_begins_with_nothing(demo, media):
    session = Session()
    demo.open(session, [str(media / "a.png")])
    assert copy.deepcopy(session).study is None


def test_the_page_builds(demo):
    page = build_page(demo.predictor, "test")
    assert page.title == "test"
    assert page.analytics_enabled is False


@pytest.mark.slow  # a process of its own: seconds to begin
def test_the_address_is_said_when_the_page_answers(model_folder):
    pytest.importorskip("gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "medmvl", "demo", "--model", str(model_folder), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert f"http://127.0.0.1:{port}" in line
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=20) as page:
                assert page.status == 200
            assert process.poll() is None
        finally:
            process.kill()
