"""The page without a browser: what is open, what is answered, and that nothing is left of a visitor."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import httpx
import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest
from tests.serving.live import get, live, post
from tests.serving.page_live import Talkative, Visitor, live_page, rows_of

from medmvl.errors import CancelledError, RecipeError
from medmvl.imaging import Volume
from medmvl.inference.calibration import Calibration
from medmvl.phantoms import draw_patient, save_nifti, write_dicom_radiograph, write_dicom_series
from medmvl.processing.stored_prompts import StoredPrompts, read_prompts
from medmvl.serving.page import asking
from medmvl.serving.page.app import POLICY
from medmvl.serving.page.asking import Asking
from medmvl.serving.page.conversation import boxes_in
from medmvl.serving.page.explaining import _factor, coarser, finer
from medmvl.serving.page.models import PageModel
from medmvl.serving.page.run import _facts
from medmvl.serving.page.settings import LANGUAGES, PageSettings, read_passwords
from medmvl.serving.page.study import save_ras
from medmvl.serving.page.wording import words
from medmvl.serving.server.settings import Limits
from waiting import PATIENCE, wait_for

STATIC = Path(words.__wrapped__.__code__.co_filename).parent / "static"


@pytest.fixture(scope="module")
def phantom():
    return draw_patient(0, 0, size=(12, 48, 48), radiograph_size=64)


@pytest.fixture(scope="module")
def ct(tmp_path_factory, phantom) -> Path:
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    save_nifti(path, phantom)
    return path


def test_image_is_shown_and_answered_about(visitor, media):
    opened = visitor.send([media / "a.png"]).json()
    assert opened["studies"][0]["kind"] == "image"
    assert opened["studies"][0]["shape"] == [48, 40]
    shown = PIL.Image.open(io.BytesIO(visitor.http.get("study/0/view").content))
    assert np.array_equal(np.asarray(shown), np.asarray(PIL.Image.open(media / "a.png")))
    assert PIL.Image.open(io.BytesIO(visitor.http.get("study/0/model").content)).size[0] > 0
    turn = visitor.ask("What is seen?")[-1]["turn"]
    assert turn["answers"]
    assert 0 <= turn["confidences"][0] <= 1


def test_volume_keeps_its_sides_and_what_the_model_sees_lies_on_it(visitor, ct, phantom, tmp_path):
    visitor.send([ct])
    for what in ("view", "model"):
        (tmp_path / f"{what}.nii").write_bytes(visitor.http.get(f"study/0/{what}").content)
    view, seen = (nibabel.load(tmp_path / f"{what}.nii") for what in ("view", "model"))
    original = nibabel.as_closest_canonical(nibabel.load(ct))
    assert nibabel.aff2axcodes(view.affine) == nibabel.aff2axcodes(seen.affine) == ("R", "A", "S")
    assert np.array_equal(view.get_fdata(), original.get_fdata())
    assert np.allclose(view.affine, original.affine)
    # The same places of the patient are bright in both: values at the centers of the model's voxels correlate.
    index = np.argwhere(np.ones(seen.shape))
    places = nibabel.affines.apply_affine(np.linalg.inv(view.affine) @ seen.affine, index)
    nearest = np.clip(np.rint(places).astype(int), 0, np.array(view.shape) - 1)
    values = np.clip(view.get_fdata()[tuple(nearest.T)], -1000, 1000)
    assert np.corrcoef(values, seen.get_fdata()[tuple(index.T)])[0, 1] > 0.85


def test_ras_files_hold_the_values_of_any_type(tmp_path):
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, bool):
        array = np.arange(24).reshape(2, 3, 4).astype(dtype)
        volume = Volume.from_array(array, spacing=(3, 2, 1), units="arbitrary", orientation="SPL").to_orientation("RAS")
        save_ras(volume.array, volume.affine, tmp_path / "a.nii")
        read = nibabel.load(tmp_path / "a.nii")
        assert read.get_data_dtype() in (np.uint8, np.int16, np.float32)
        assert np.array_equal(np.asarray(read.dataobj), volume.array.astype(read.get_data_dtype()))


AXIAL = [1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("stated", "slice_cosines", "sides"),
    [
        (["L", "F"], None, ["R", "L", "S", "I"]),
        (["R", "F"], None, ["L", "R", "S", "I"]),  # seen from the back
        (["AL", "F"], None, ["PR", "AL", "S", "I"]),  # oblique
        (None, AXIAL, ["R", "L", "A", "P"]),
        (["L", "P"], AXIAL, ["R", "L", "A", "P"]),
        (["R", "P"], AXIAL, None),  # a contradiction
        (None, None, None),
        (["L", "R"], None, None),
        (["LR", "F"], None, None),
        (["XB", "F"], None, None),
    ],
)
def test_radiograph_has_the_sides_that_its_file_states(visitor, phantom, tmp_path, stated, slice_cosines, sides):
    path = write_dicom_radiograph(tmp_path / "chest.dcm", phantom)
    dataset = pydicom.dcmread(path)
    dataset.PatientOrientation = stated
    if slice_cosines:
        dataset.ImageOrientationPatient = slice_cosines
    dataset.save_as(path)
    facts = visitor.send([path]).json()["studies"][0]
    assert facts["sides"] == sides
    assert facts["sides_known"] == (sides is not None)
    request = {"format": "json", "images": [{"study": 0}], "version": visitor.version}
    exported = visitor.http.post("export", json=request).json()["key_images"][0]["png_base64"]
    drawn = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(exported))).convert("L")).astype(int)
    shown = np.asarray(PIL.Image.open(io.BytesIO(visitor.http.get("study/0/view").content)).convert("L")).astype(int)
    assert drawn.shape == shown.shape
    assert (np.abs(drawn - shown).max() > 0) == (sides is not None)


def test_picture_without_sides_has_no_letters(visitor, media):
    assert visitor.send([media / "a.png"]).json()["studies"][0]["sides"] is None


def test_study_with_two_series_offers_a_choice(visitor, phantom, tmp_path):
    for number, depth in enumerate((8, 12)):
        write_dicom_series(tmp_path / f"s{number}", draw_patient(0, number, size=(depth, 48, 48)))
    files = sorted(tmp_path.rglob("*.dcm"))
    found = visitor.send(files).json()
    assert [choice["description"].split(",")[1].strip() for choice in found["series"]] == [
        "12 slices of 48x48",
        "8 slices of 48x48",
    ]
    assert visitor.http.get("study/0/view").status_code == 404
    opened = visitor.post("open", read={"series": found["series"][1]["series"]}).json()
    assert opened["studies"][0]["shape"] == [48, 48, 8]


def test_zip_of_a_series_opens_and_gaps_have_a_remedy(visitor, phantom, tmp_path):
    write_dicom_series(tmp_path / "series", phantom)
    files = sorted((tmp_path / "series").rglob("*.dcm"))
    for left_out, status in ((None, 200), (5, 400)):
        with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
            for number, file in enumerate(files):
                if number != left_out:
                    archive.write(file, f"../../{file.name}")
        found = visitor.send([tmp_path / "study.zip"])
        assert found.status_code == status, found.text
    remedies = found.json()["remedies"]
    assert {"option": "gaps", "value": "fill"} in remedies
    assert visitor.post("open", read={"gaps": "fill"}).json()["studies"][0]["shape"] == [48, 48, 12]


def test_new_failed_or_cleared_upload_ends_the_conversation(visitor, media, ct, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for end in (lambda: visitor.send([tmp_path / "broken.png"]), lambda: visitor.post("clear")):
        visitor.send([media / "a.png"])
        asked = visitor.version
        visitor.ask("What is seen?")
        end()
        assert visitor.http.get("study/0/view").status_code == 404
        refused = visitor.ask("And now?")
        assert refused[0]["code"] == "no_picture"
        late = visitor.http.post("ask", json={"text": "And now?", "version": asked})
        assert late.status_code == 409
    visitor.send([media / "a.png"])
    visitor.ask("What is seen?")
    visitor.send([ct])
    exported = visitor.http.post("export", json={"format": "json", "version": visitor.version}).json()
    assert exported["turns"] == []


@pytest.mark.parametrize("damaged", ["no picture", ""])
def test_refused_upload_is_named(visitor, media, ct, phantom, tmp_path, damaged):
    (tmp_path / "knee x-ray.png").write_text(damaged)
    for files in ([tmp_path / "knee x-ray.png"], [media / "a.png", tmp_path / "knee x-ray.png"]):
        refused = visitor.send(files).json()["error"]
        assert "knee x-ray.png" in refused
        assert "a.png" not in refused
        assert "00001" not in refused
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        archive.writestr("scan.dcm", "no scan")
    assert "study.zip" in visitor.send([media / "a.png", tmp_path / "study.zip"]).json()["error"]


def test_refused_series_is_named_by_its_first_file(visitor, phantom, tmp_path):
    write_dicom_series(tmp_path / "series", phantom)
    files = sorted((tmp_path / "series").rglob("*.dcm"))
    refused = visitor.send(files[:5] + files[6:]).json()["error"]
    assert f"{files[0].name} (+{len(files) - 2}): " in refused
    assert "dicom" not in refused


def test_question_without_picture_needs_the_visitors_word(visitor):
    assert visitor.ask("What is a nodule?")[0]["code"] == "no_picture"
    assert "turn" in visitor.ask("What is a nodule?", without_picture=True)[-1]


def test_conversation_that_is_too_long_loses_its_first_turns(served, visitor, media):
    visitor.send([media / "a.png"])
    with Talkative(served[0]):
        turns = [visitor.ask("What is seen?", follow_up=True)[-1]["turn"] for _ in range(2)]
    assert [turn["left_out"] for turn in turns] == [0, 1]
    assert turns[1]["answers"][0]


def test_follow_up_knows_the_first_turn_and_another_question_does_not(served, visitor, media, monkeypatch):
    visitor.send([media / "a.png"])
    monkeypatch.setattr(served[0].asking, "_settings", PageSettings(new_tokens=6))
    with Talkative(served[0]):
        first = visitor.ask("What is seen?")[-1]["turn"]
        seen = []
        scheduler = served[0].asking.models[0].scheduler
        submit = scheduler.submit
        scheduler.submit = lambda job: (seen.append(job.rows[0].encoded["input_ids"]), submit(job))
        try:
            follow_up = visitor.ask("And the left lung?", follow_up=True)[-1]["turn"]
            visitor.ask("And the left lung?", follow_up=True, regenerate=True)
            alone = visitor.ask("And the left lung?", regenerate=True)[-1]["turn"]
        finally:
            del scheduler.submit
    tokenizer = served[0].asking.models[0].predictor.processor.tokenizer
    prompts = [tokenizer.decode(ids) for ids in seen]
    assert all("What is seen?" in prompt and first["answers"][0] in prompt for prompt in prompts[:2])
    assert "What is seen?" not in prompts[2]
    assert [turn["follow_up"] for turn in (first, follow_up, alone)] == [False, True, False]
    assert prompts[0] == prompts[1]  # asked again, the last turn is not part of its own history
    exported = visitor.http.post("export", json={"format": "json", "version": visitor.version}).json()
    assert [turn["text"] for turn in exported["turns"]] == ["What is seen?", "And the left lung?"]


def test_visitor_who_leaves_stops_the_answer(served, media):
    page, address = served
    visitor = Visitor(address)
    visitor.send([media / "a.png"])
    request = {"text": "What is seen?", "version": visitor.version}
    session = page.sessions.get(visitor.facts["session"])
    with Talkative(page, pause=0.05) as talkative:
        with visitor.http.stream("POST", "ask", json=request) as answer:
            next(line for line in answer.iter_lines() if "piece" in line)
        wait_for(lambda: not rows_of(page), what="nothing is decoded")
        assert talkative.steps < 500
    wait_for(lambda: session.turns, what="the stopped answer is kept")
    exported = visitor.http.post("export", json={"format": "json", "version": visitor.version}).json()
    assert exported["turns"][0]["stopped"]


def test_closed_question_is_answered_by_probabilities(visitor, media):
    visitor.send([media / "a.png"])
    turn = visitor.post("chances", text="Is there a nodule?", options=["Yes", "No"], version=visitor.version).json()[
        "turn"
    ]
    assert sum(turn["chances"].values()) == pytest.approx(1)
    assert turn["answers"] == [max(turn["chances"], key=turn["chances"].get)]
    assert visitor.post("chances", text="?", options=["Yes"], version=visitor.version).json()["code"] == "options"


@pytest.fixture
def unsure(served, monkeypatch):
    """The served page with a stored threshold that no answer reaches."""
    model = served[0].asking.models[0]
    calibrated = model.predictor.with_calibration(Calibration(threshold=1.5))
    monkeypatch.setattr(served[0].asking, "models", [PageModel("unsure", calibrated, model.scheduler)])
    monkeypatch.setattr(served[0].asking, "_settings", PageSettings(new_tokens=6, abstain_below="stored"))


def test_answers_below_the_threshold_are_withheld(served, unsure, visitor, media):
    visitor.send([media / "a.png"])
    with Talkative(served[0]):
        events = visitor.ask("What is seen?")
    closed = visitor.post("chances", text="Is there an effusion?", options=["Yes", "No"], version=visitor.version)
    turns = [events[-1]["turn"], closed.json()["turn"]]
    assert [turn["answers"] for turn in turns] == [[""], [""]]
    assert [turn["withheld"] for turn in turns] == [[1.5], [1.5]]
    assert turns[0]["confidences"] == [1.0]
    assert 0.5 <= turns[1]["confidences"][0] < 1
    assert turns[1]["chances"] is None  # they would tell the answer
    assert any("piece" in event for event in events)  # by sending, the server notices who has left
    assert "nodule" not in json.dumps(events)
    assert "error" in explain(visitor, turns[1]["id"])[0]
    for language, sentence in (
        ("en", "No answer: the confidence, 100.0 %"),
        ("zh", "置信度 100.0 % 低于阈值 \\> 100 %"),
    ):
        request = {"version": visitor.version, "language": language, "format": "markdown"}
        assert sentence in visitor.http.post("export", json=request).text
    session = served[0].sessions.get(visitor.facts["session"])
    sample = served[0].asking._sample(session, session.turns, 0, "And now?")
    assert [message.role for message in sample.messages] == ["user"]  # later questions do not build on it


def test_visitor_who_leaves_stops_a_withheld_answer(served, unsure, visitor, media, monkeypatch):
    monkeypatch.setattr(served[0].asking, "_settings", PageSettings(new_tokens=400, abstain_below="stored"))
    visitor.send([media / "a.png"])
    session = served[0].sessions.get(visitor.facts["session"])
    with Talkative(served[0], pause=0.05) as talkative:
        with visitor.http.stream("POST", "ask", json={"text": "What is seen?", "version": visitor.version}) as answer:
            next(line for line in answer.iter_lines() if "piece" in line)
        wait_for(lambda: not rows_of(served[0]), what="nothing is decoded")
        assert talkative.steps < 300
    wait_for(lambda: session.turns, what="the stopped answer is kept")
    exported = visitor.http.post("export", json={"format": "json", "version": visitor.version}).json()
    assert (exported["turns"][0]["stopped"], exported["turns"][0]["answers"]) == (True, [""])


def test_answers_at_the_threshold_are_shown(served, visitor, media, monkeypatch):
    monkeypatch.setattr(served[0].asking, "_settings", PageSettings(new_tokens=6, abstain_below=0.4))
    visitor.send([media / "a.png"])
    with Talkative(served[0]):
        events = visitor.ask("What is seen?")
    closed = visitor.post("chances", text="Is there an effusion?", options=["Yes", "No"], version=visitor.version)
    assert not any(event.get("piece") for event in events)  # nothing is shown before the confidence is known
    assert "nodule" in events[-1]["turn"]["answers"][0]
    assert events[-1]["turn"]["withheld"] == closed.json()["turn"]["withheld"] == [None]
    assert closed.json()["turn"]["chances"]


def test_page_refuses_a_threshold_that_is_not_stored(served):
    with pytest.raises(RecipeError, match="stores no threshold"):
        Asking(served[0].asking.models, PageSettings(abstain_below="stored"))


def test_visitors_are_served_in_turn_and_apart(model_folder, media):
    with live_page(model_folder, limits=Limits(batch=1)) as (page, address):
        visitors = [Visitor(address) for _ in range(32)]
        for number, visitor in enumerate(visitors):
            assert visitor.send([media / f"{'abc'[number % 3]}.png"]).status_code == 200
        page.asking._settings = PageSettings(new_tokens=4)
        scheduler = page.asking.models[0].scheduler
        with Talkative(page, begin=lambda: scheduler.waiting > 2), concurrent.futures.ThreadPoolExecutor(32) as pool:
            found = list(pool.map(lambda one: one.ask("What is seen?"), visitors))
        assert all(events[-1]["turn"]["answers"][0] for events in found)
        assert max(event.get("queue", 0) for events in found for event in events) > 1
        folders = {session.folder for session in page.sessions._open.values()}
        assert len(folders) == 32
        assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in folders)
        stranger = get(f"{address}/page/api/study/0/view", headers={"x-session": "guess"})
        assert stranger.status_code == 403


def test_nothing_is_left_of_a_session(model_folder, ct, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with live_page(model_folder) as (page, address):
        visitors = [Visitor(address) for _ in range(3)]
        for visitor in visitors:
            visitor.send([ct])
        folders = [session.folder for session in page.sessions._open.values()]
        assert all(any(folder.rglob("*.nii")) for folder in folders)
        visitors[0].post("clear")
        assert not any(folders[0].iterdir())
        visitors[1].post("leave")
        assert not folders[1].exists()
        page.sessions.get(visitors[2].facts["session"]).seen -= 1000
        page.sessions.end_unused()
        assert not folders[2].exists()
        assert visitors[2].http.get("study/0/view").status_code == 403
        Visitor(address).send([ct])
    assert not list(tmp_path.glob("visitor-*"))


def test_page_beyond_this_machine_asks_for_a_password(model_folder, tmp_path):
    with live_page(model_folder, settings=PageSettings(passwords=("correct horse",))) as (_, address):
        for wrong in (None, "wrong horse"):
            assert post(f"{address}/page/api/session", json={"password": wrong}).status_code == 401
        assert Visitor(address, "correct horse").post("ping").status_code == 200
    for text in ("", "short"):
        (tmp_path / "passwords").write_text(text)
        with pytest.raises(RecipeError):
            read_passwords(tmp_path / "passwords")


def test_page_inside_the_server_is_opened_by_a_key(model_folder, media):
    with live(model_folder, page=True, keys={"0123456789abcdef": "ward"}, abstain_below=1.0) as server:
        assert "text/html" in get(server.address).headers["content-type"]
        assert post(f"{server.address}/page/api/session", json={}).status_code == 401
        visitor = Visitor(server.address, "0123456789abcdef")
        visitor.send([media / "a.png"])
        assert visitor.ask("What is seen?")[-1]["turn"]["withheld"] == [1.0]
        client = server.client("0123456789abcdef")
        assert client.models.list().data[0].id == "tiny"
    with live(model_folder) as server:
        assert get(server.address).status_code == 404


def test_vendored_files_and_words_are_in_the_wheel(tmp_path):
    build = pytest.importorskip("hatchling.builders.wheel")
    root = STATIC.parents[4]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("not in a clone")
    (wheel,) = build.WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {f"medmvl/serving/page/static/{file.relative_to(STATIC)}" for file in STATIC.rglob("*") if file.is_file()}
    assert len(inside) > 15
    assert inside <= names


@pytest.mark.slow  # a process of its own: seconds to begin
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_page_leaves_nothing(model_folder, media, tmp_path, sign):
    command = [sys.executable, "-m", "medmvl", "demo", "--model", str(model_folder), "--port", "0"]
    command += ["--abstain-below", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            address = re.search(r"http://\S+", process.stdout.readline())[0]
            visitor = Visitor(address)
            visitor.send([media / "a.png"])
            assert any(tmp_path.rglob("view.png"))
            assert visitor.ask("What is seen?")[-1]["turn"]["withheld"] == [1.0]
            process.send_signal(sign)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert not any(tmp_path.glob("medmvl-*"))


@pytest.mark.slow
def test_other_address_makes_up_a_password(model_folder):
    command = [sys.executable, "-m", "medmvl", "demo", "--model", str(model_folder), "--port", "0", "--host", "0.0.0.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            port = re.search(r":(\d+)", process.stdout.readline())[1]
            password = next(line for line in process.stderr if "password is" in line).split()[-1]
            assert post(f"http://127.0.0.1:{port}/page/api/session", json={}).status_code == 401
            assert Visitor(f"http://127.0.0.1:{port}", password).post("ping").status_code == 200
        finally:
            process.kill()


def test_every_answer_carries_the_policy_and_other_hosts_are_refused(served):
    address = served[1]
    for path in ("/", "/page/js/main.js", "/page/nothing", "/page/vendor/niivue-0.69.0.umd.js"):
        assert get(address + path).headers["content-security-policy"] == POLICY
    assert post(f"{address}/page/api/ping").headers["content-security-policy"] == POLICY
    assert get(address, headers={"host": "evil.example"}).status_code == 400
    for path in ("/page/../run.py", "/page/%2e%2e/run.py", "/page/words/../../app.py"):
        assert get(address + path).status_code == 404


def test_files_of_the_page_hold_no_inline_code_and_no_address():
    for file in STATIC.rglob("*"):
        if file.suffix in (".js", ".html", ".css") and "vendor" not in file.parts:
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), file
            assert "innerHTML" not in text, file
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", html)


def test_languages_have_the_same_words_and_the_page_uses_all_of_them():
    keys = [set(words(language)) for language in LANGUAGES]
    assert all(keys[0] == other for other in keys[1:])
    assert all(value.strip() for language in LANGUAGES for value in words(language).values())
    texts = [file.read_text(encoding="utf-8") for file in STATIC.rglob("*") if file.suffix in (".js", ".html")]
    used = set(re.findall(r'data-(?:word|title|placeholder)="(\w+)"', "".join(texts)))
    used |= set(re.findall(r'\bword\("(\w+)"', "".join(texts)))
    assert used <= keys[0]
    codes = re.findall(r'"(\w+)"(?:, \w+=\S+)?\)(?: from None)?$', "".join(
        file.read_text() for file in (STATIC.parent).glob("*.py")), re.MULTILINE)  # fmt: skip
    assert {"no_picture", "changed", "busy"} <= set(codes)
    placeholders = [sorted(re.findall(r"\{(\w+)\}", words(language)[key])) for key in keys[0] for language in LANGUAGES]
    assert placeholders[::2] == placeholders[1::2]


def test_hostile_names_and_tags_are_texts(visitor, phantom, tmp_path):
    evil = '<img src=x onerror="alert(1)">'
    write_dicom_series(tmp_path / "series", phantom)
    for file in (tmp_path / "series").rglob("*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.PatientName = dataset.SeriesDescription = evil
        dataset.save_as(file)
    files = sorted((tmp_path / "series").rglob("*.dcm"))
    renamed = files[0].rename(files[0].with_name("<script>alert(1)<slash>.dcm"))
    found = visitor.send([renamed, *files[1:]])
    assert found.headers["content-type"] == "application/json"
    assert evil not in found.text
    assert found.json()["studies"][0]["name"].startswith("<script>")  # text of a JSON value; the page sets it as text


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("open", '{"read": [1]}'),
        ("open", '{"read": "x"}'),
        ("session", '{"password": "\\ud800"}'),
        ("ask", '{"version": VERSION, "text": "\\ud800 a"}'),
        ("ask", '{"version": VERSION, "text": ["a"]}'),
        ("ask", "[" * 100_000),
        ("chances", '{"version": VERSION, "text": "a?", "options": ["\\ud800", "b"]}'),
        ("chances", '{"version": VERSION, "text": "a?", "options": {"a": 1}}'),
        ("explain", '{"version": VERSION, "turn": {"a": 1}}'),
        ("export", '{"version": VERSION, "format": "json", "images": [{"study": 1e400}]}'),
        (
            "export",
            '{"version": VERSION, "format": "json", "images": [{"study": 0, "boxes": [{"box": [NaN, 0, 1, 1], "number": 1}]}]}',
        ),
        ("export", '{"version": VERSION, "format": "json", "images": [{"study": 0, "boxes": [[0, 0, 1, 1]]}]}'),
        (
            "export",
            '{"version": VERSION, "format": "json", "images": [{"study": 0, "boxes": [{"box": [1E, 0, 1, 1], "number": 1}]}]}',
        ),
    ],
)
def test_odd_requests_are_refused(visitor, media, name, body):
    visitor.send([media / "a.png"])
    if name == "open":
        visitor.http.put("file", content=(media / "a.png").read_bytes()).raise_for_status()
    body = body.replace("VERSION", str(visitor.version)).replace("1E", "1" + "0" * 400)
    reply = visitor.http.post(name, content=body)
    assert 400 <= reply.status_code < 500
    assert reply.json()["error"]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_page_of_another_site_begins_no_session(served, site):
    before = len(served[0].sessions)
    reply = post(f"{served[1]}/page/api/session", content="{}", headers={"sec-fetch-site": site})
    assert reply.status_code == 403
    assert len(served[0].sessions) == before


def test_prompts_of_a_folder_that_cannot_be_sent_are_left_out(tmp_path):
    for text in ("\\ud800", "a" * 300_000):
        task = f'{{"task": "{text}", "modality": "image", "prompts": []}}'
        (tmp_path / "prompts.json").write_text(f'{{"tasks": [{task}], "images": 1, "volumes": 0, "synthetic": false}}')
        assert read_prompts(tmp_path) == StoredPrompts()


def test_conversation_has_an_end(visitor, media, monkeypatch):
    monkeypatch.setattr(asking, "MOST_TURNS", 2)
    visitor.send([media / "a.png"])
    for status in (200, 200, 400):
        body = {"version": visitor.version, "text": "Is there a nodule?", "options": ["yes", "no"]}
        assert visitor.http.post("chances", json=body).status_code == status


def test_boxes_are_found_in_answers():
    found = boxes_in("Here {<9><12><46><82>}, and {<70> <80><60><20>}; not {<1><2><3>}.")
    assert [one["box"] for one in found] == [[0.09, 0.12, 0.46, 0.82], [0.6, 0.2, 0.7, 0.8]]
    assert found[0]["start"] == 5


@pytest.mark.parametrize(
    ("answer", "shown"),
    [("Left upper lobe.", True), ("{<9><12><46><82>}", False), ("Both lungs are clear. The heart is enlarged.", False)],
)
def test_export_holds_the_confidence_of_a_short_answer(visitor, media, monkeypatch, answer, shown):
    monkeypatch.setattr(PageModel, "final", lambda *_: answer)
    visitor.send([media / "a.png"])
    (turn,) = [visitor.ask("What is seen?")[-1]["turn"]]
    assert turn["confidence_shown"] == [shown]
    assert turn["confidences"][0] is not None  # programs get the number of every answer
    for language in LANGUAGES:
        request = {"format": "markdown", "version": visitor.version, "language": language}
        text = visitor.http.post("export", json=request).text
        assert (words(language)["confidence_means"] in text) == shown


def test_conversation_is_the_default_only_if_the_model_has_learned_it():
    models = [SimpleNamespace(name="m", predictor=SimpleNamespace(model=SimpleNamespace(towers=()))) for _ in range(3)]
    for model, dialogs in zip(models, (True, False, None), strict=True):
        model.prompts = StoredPrompts(dialogs=dialogs)
    assert [_facts([model])["dialogs"] for model in models] == [True, False, False]
    assert not _facts(models[:2])["dialogs"]


def test_exports_hold_conversation_and_key_images(visitor, ct):
    visitor.send([ct])
    visitor.post("chances", text="Is there a [nodule](http://x)?", options=["Yes", "No"], version=visitor.version)
    images = [{"study": 0, "plane": "axial", "index": 5, "window": [-1350, 150]}]
    request = {"images": images, "version": visitor.version, "language": "zh"}
    found = visitor.http.post("export", json={"format": "json", **request}).json()
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(found["key_images"][0]["png_base64"])))
    assert found["key_images"][0]["slice"] == 6
    assert np.asarray(picture).std() > 10
    assert found["turns"][0]["chances"]
    text = visitor.http.post("export", json={"format": "markdown", **request}).text
    assert words("zh")["banner"] in text
    assert "[nodule]" not in text  # an answer cannot hold a link
    for language in LANGUAGES:
        pdf = visitor.http.post("export", json={"format": "pdf", **request, "language": language})
        assert pdf.content.startswith(b"%PDF")
        assert pdf.headers["content-disposition"].endswith('.pdf"')
    wrong = [{"study": 3, "plane": "axial", "index": 0, "window": [0, 1]}]
    assert visitor.post("export", format="json", images=wrong, version=visitor.version).status_code == 400


def test_no_probability_is_rounded_to_certainty(served, visitor, media, monkeypatch):
    visitor.send([media / "a.png"])
    monkeypatch.setattr(PageModel, "chances", lambda *_: {"Yes": 0.99997, "No": 0.00003})
    visitor.post("chances", text="Is there an effusion?", options=["Yes", "No"], version=visitor.version)
    request = {"format": "markdown", "version": visitor.version}
    assert "Yes: \\> 99.9 %, No: \\< 0.1 %" in visitor.http.post("export", json=request).text


def test_two_models_are_compared_blind_and_the_preference_is_kept(model_folder, media, tmp_path):
    settings = PageSettings(preferences=tmp_path / "preferences.jsonl", new_tokens=4)
    with live_page(model_folder, model_folder, settings=settings) as (page, address):
        page.asking._random.seed(0)  # a fair coin may fall on one side twelve times
        visitor = Visitor(address)
        visitor.send([media / "a.png"])
        orders = set()
        for _ in range(12):
            turn = visitor.ask("What is seen?", compare=True, blind=True)[-1]["turn"]
            assert len(turn["answers"]) == 2
            orders.add(tuple(page.sessions.get(visitor.facts["session"]).turns[-1].order))
        assert orders == {(0, 1), (1, 0)}
        exported = visitor.http.post("export", json={"format": "json", "version": visitor.version}).json()
        assert exported["turns"][-1]["models"] == ["A", "B"]  # still blind
        names = visitor.post("prefer", turn=turn["id"], choice="second").json()["models"]
        assert sorted(names) == ["model-0", "model-1"]
        assert visitor.post("prefer", turn=turn["id"], choice="both").status_code == 400
    line = json.loads((tmp_path / "preferences.jsonl").read_text())
    assert line["models"] == names
    assert line["preferred"] == "second"
    assert "seen" not in json.dumps(line)


def test_prior_and_current_are_both_seen(served, visitor, media):
    visitor.send([media / "a.png"])
    opened = visitor.send([media / "b.png"], add=True).json()
    assert [study["name"] for study in opened["studies"]] == ["a.png", "b.png"]
    session = served[0].sessions.get(visitor.facts["session"])
    assert served[0].asking.models[0].visual(session.studies, 0)["pixel_values"].shape[0] == 2
    assert "turn" in visitor.ask("What has changed?")[-1]
    mixed = visitor.send([media / "a.npy"], add=True)
    assert mixed.json()["code"] == "mixed"


def explain(visitor: Visitor, turn: str, **more) -> list[dict]:
    found = visitor.http.post("explain", json={"turn": turn, "version": visitor.version, **more})
    return [json.loads(line) for line in found.text.splitlines()]


def test_explanation_of_a_volume_is_a_map_in_its_place(served, visitor, ct, tmp_path):
    visitor.send([ct])
    asked = visitor.post("chances", text="Is there a nodule?", options=["Yes", "No"], version=visitor.version)
    events = explain(visitor, asked.json()["turn"]["id"])
    assert [event for event in events if "progress" in event]
    maps = [event["map"] for event in events if "map" in event]
    assert [one["final"] for one in maps] == [False, True]  # coarse to fine
    found = maps[-1]
    assert (found["plane"], len(found["slices"]), found["preview"]) == ("axial", 12, False)
    assert 0 < found["probability"] <= 1
    assert ("hardly" in found["doubts"]) == (found["neutral"] > 0.8 * found["probability"])
    for name, path in ((f"evidence/{found['id']}", "heat.nii"), ("study/0/view", "view.nii")):
        (tmp_path / path).write_bytes(visitor.http.get(name).content)
    heat, view = (nibabel.load(tmp_path / name) for name in ("heat.nii", "view.nii"))
    assert np.allclose(heat.affine, view.affine)
    assert heat.shape == view.shape
    values = heat.get_fdata()
    assert values.min() == pytest.approx(0, abs=1e-6)
    # A drop below 0.1 nats is drawn faintly, whatever the highest is.
    assert values.max() == pytest.approx(max(found["top"], 0) / max(found["top"], 0.1), abs=1e-4)
    peak = tuple(int(share * length) for share, length in zip(found["peak"], heat.shape, strict=True))
    assert values[peak] == pytest.approx(values.max(), abs=1e-6)
    visitor.post("forget")
    assert visitor.http.get(f"evidence/{found['id']}").status_code == 404


def test_explanation_of_an_image_and_its_refusals(served, visitor, media, monkeypatch):
    visitor.send([media / "a.png"])
    monkeypatch.setattr("medmvl.serving.page.models.PageModel.final", lambda *_: "A nodule. No effusion.")
    turn = visitor.ask("What is seen?")[-1]["turn"]["id"]
    events = explain(visitor, turn, sentence="No effusion.", method="attention-preview")
    found = events[-1]["map"]
    assert found["preview"]
    assert found["sentence"] == "No effusion."
    assert PIL.Image.open(io.BytesIO(visitor.http.get(f"evidence/{found['id']}").content)).size == (48, 40)
    for wrong in ({"sentence": "A heart."}, {"method": "guess"}, {"study": 3}):
        assert "error" in explain(visitor, turn, **wrong)[0]
    assert explain(visitor, "no turn")[0]["code"] == "changed"


def exported(visitor: Visitor, form: str, **image) -> httpx.Response:
    """Export the conversation with one key image."""
    return visitor.http.post("export", json={"format": form, "images": [image], "version": visitor.version})


def colored(key_image: dict) -> int:
    """Return how many pixels of an exported picture are neither gray nor a yellow box."""
    picture = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(key_image["png_base64"])))).astype(int)
    return int((np.abs(picture[..., 0] - picture[..., 2]) > 40).sum())


def test_export_holds_the_heat_map_with_its_doubts(visitor, ct, monkeypatch):
    monkeypatch.setattr("medmvl.inference.evidence.result.LEAST_SCALE", 1e-9)  # a random model's map would be faint
    visitor.send([ct])
    visitor.send([ct], add=True)
    turn = visitor.post("chances", text="Is there a nodule?", options=["Yes", "No"], version=visitor.version).json()[
        "turn"
    ]
    found = [event["map"] for event in explain(visitor, turn["id"], study=1) if "map" in event][-1]
    slice_number = int(found["peak"][2] * 12)
    place = {"study": 1, "plane": "axial", "index": slice_number, "window": [-1350, 150]}
    plain, heated = (
        exported(visitor, "json", **place, **more).json()["key_images"][0] for more in ({}, {"evidence": found["id"]})
    )
    assert (colored(plain), colored(heated) > 500) == (0, True)
    assert heated["heat_map"] == {key: found[key] for key in heated["heat_map"]}
    assert "heat_map" not in plain
    text = exported(visitor, "markdown", **place, evidence=found["id"]).text
    said = ["heat_of", "evidence_occlusion", "evidence_numbers", *(f"evidence_{doubt}" for doubt in found["doubts"])]
    assert [key for key in said if words("en")[key].split(":")[0].split(".")[0] not in text] == []
    assert exported(visitor, "pdf", **place, evidence=found["id"]).content.startswith(b"%PDF")
    assert exported(visitor, "json", **{**place, "study": 0}, evidence=found["id"]).status_code == 400
    assert words("en")["heat_gone"] in exported(visitor, "markdown", **place, evidence="0" * 16).text


def test_export_of_an_image_labels_a_preview(visitor, media, monkeypatch):
    visitor.send([media / "a.png"])
    monkeypatch.setattr("medmvl.serving.page.models.PageModel.final", lambda *_: "A nodule.")
    turn = visitor.ask("What is seen?")[-1]["turn"]["id"]
    found = explain(visitor, turn, method="attention-preview")[-1]["map"]
    heated = exported(visitor, "json", study=0, evidence=found["id"]).json()["key_images"][0]
    assert heated["heat_map"]["preview"]
    plain = exported(visitor, "json", study=0).json()["key_images"][0]
    assert colored(heated) > colored(plain)
    assert "NO evidence" in exported(visitor, "markdown", study=0, evidence=found["id"]).text


@pytest.mark.parametrize(("language", "word"), [("en", "boxes"), ("zh", "框")])
def test_boxes_of_an_exported_image_are_numbered_as_on_the_page(visitor, media, language, word):
    visitor.send([media / "a.png"])
    boxes = [{"box": [0.1, 0.29, 0.5, 0.6], "number": number} for number in (3, 12)]
    images = [exported(visitor, "json", study=0, boxes=[box]).json()["key_images"][0] for box in boxes]
    assert [image["boxes"] for image in images] == [[box] for box in boxes]
    assert images[0]["png_base64"] != images[1]["png_base64"]  # only the number differs
    request = {"format": "markdown", "images": [{"study": 0, "boxes": boxes}], "version": visitor.version}
    text = visitor.http.post("export", json={**request, "language": language}).text.replace("\\", "")
    assert f"{word} 3: {{<10><29><50><60>}}, 12: {{<10><29><50><60>}}" in text


@pytest.mark.parametrize("shape", [(200, 97, 10), (96, 96, 3), (5, 192, 193)])
def test_finer_gives_every_voxel_the_value_of_its_block(shape):
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    blocks, _ = coarser(values, np.eye(4))
    back = finer(blocks, shape)
    assert back.shape == shape
    again, _ = coarser(back, np.eye(4))
    assert np.allclose(again, blocks, atol=1e-6)


def test_unlikely_texts_are_compared_by_a_factor():
    logs = [(-1.0, -2.0), (-9.0, -9.5), (-9.0, -12.0), (-400.0, -900.0), (-12.0, -9.0), (-2000.0, -2000.0)]
    assert [_factor(*pair) for pair in logs] == [None, "1.6", "20", "> 1000", "< 0.1", "1.0"]


def test_coarse_maps_stay_in_their_place():
    values = np.zeros((200, 97, 10), dtype=np.float32)
    values[120:126, 40:42, 5] = 1
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    coarse, moved = coarser(values, affine)
    assert coarse.shape == (67, 49, 10)
    place = nibabel.affines.apply_affine(moved, np.argwhere(coarse == coarse.max()).mean(0))
    assert place == pytest.approx(nibabel.affines.apply_affine(affine, (122.5, 40.5, 5)), abs=1.6)


def test_visitor_who_leaves_stops_the_explanation(served, media, monkeypatch):
    page, address = served
    visitor = Visitor(address)
    visitor.send([media / "a.png"])
    asked = visitor.post("chances", text="Is there a nodule?", options=["Yes", "No"], version=visitor.version)
    stopped = threading.Event()

    def endless(*_, progress, cancel, **__):
        while not cancel.is_set():
            progress(1, 100)
            time.sleep(0.01)
        stopped.set()
        raise CancelledError("The explanation was cancelled.")

    monkeypatch.setattr(page.asking.models[0], "explain", endless)
    request = {"turn": asked.json()["turn"]["id"], "version": visitor.version}
    with visitor.http.stream("POST", "explain", json=request) as answer:
        next(answer.iter_lines())
    assert stopped.wait(PATIENCE)
    wait_for(lambda: not page.asking._analyses, what="nothing is explained")


def test_bug_is_told_without_content(served, visitor, media, monkeypatch, caplog):
    visitor.send([media / "a.png"])

    def broken(*_):
        raise ValueError("Quisenberry, born 1943")

    monkeypatch.setattr(served[0].asking, "_row", broken)
    found = visitor.ask("What is seen?")
    assert found == [{"error": "The server failed on this request.", "code": "failed"}]
    assert "ValueError" in caplog.text
    assert "Quisenberry" not in caplog.text


def test_probabilities_are_calibrated(served, visitor, media):
    visitor.send([media / "a.png"])
    model = served[0].asking.models[0]
    request = {"text": "Is there a nodule?", "options": ["Yes", "No"], "version": visitor.version}
    plain = visitor.http.post("chances", json=request).json()["turn"]["chances"]
    visitor.post("forget")
    hot = PageModel("hot", model.predictor.with_calibration(Calibration(temperature=4.0)), model.scheduler)
    served[0].asking.models = [hot]
    try:
        softer = visitor.http.post("chances", json={**request, "version": visitor.version}).json()["turn"]["chances"]
    finally:
        served[0].asking.models = [model]
    assert math.log(softer["Yes"] / softer["No"]) == pytest.approx(math.log(plain["Yes"] / plain["No"]) / 4, abs=1e-6)
