"""Uploads to the page: bounds, ones that break off or are given up, and the room they take."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager

import pytest
from tests.serving.live import put
from tests.serving.page_live import Visitor, live_page

from medmvl.phantoms import draw_patient, save_nifti
from medmvl.serving.page.settings import PageSettings
from waiting import PATIENCE, wait_for


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    save_nifti(path, draw_patient(0, 0, size=(12, 48, 48), radiograph_size=64))
    return path


@pytest.fixture
def session(served, visitor):
    return served[0].sessions.get(visitor.facts["session"])


def test_uploads_are_bounded(model_folder, media):
    with live_page(model_folder, settings=PageSettings(upload_mib=1, files=2)) as (_, address):
        visitor = Visitor(address)
        assert visitor.http.put("file", content=bytes(2**20 + 1)).status_code == 413
        for status in (200, 200, 413):
            assert visitor.http.put("file", content=b"a").status_code == status
        visitor.post("clear")
        assert visitor.send([media / "a.png"]).status_code == 200


def _room(page, visitor) -> int:
    folder = page.sessions.get(visitor.facts["session"]).folder
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_opening_again_takes_no_more_room(served, visitor, ct, tmp_path):
    with zipfile.ZipFile(tmp_path / "garbage.zip", "w") as archive:
        archive.writestr("a", bytes(range(256)) * 1000)
    for path, status in ((tmp_path / "garbage.zip", 400), (ct, 200)):
        found = []
        visitor.post("clear")
        for _ in range(3):
            if status == 200 or not found:
                visitor.http.put("file", content=path.read_bytes()).raise_for_status()
            assert visitor.post("open").status_code == status
            found.append(_room(served[0], visitor))
        assert found == found[:1] * 3
    assert visitor.http.get("study/0/view").status_code == 200


@contextmanager
def _half_sent(session, visitor, content, name="a.png"):
    """Send half of a file and wait until it has arrived; the other half follows at the end, and the reply is given."""
    go_on, replies = threading.Event(), []

    def pieces():
        yield content[: len(content) // 2]
        assert go_on.wait(PATIENCE)
        yield content[len(content) // 2 :]

    def send():
        address, headers = visitor.http.base_url, {"x-name": name, "x-session": visitor.facts["session"]}
        replies.append(put(f"{address}file", content=pieces(), headers=headers))

    before = session.uploaded
    sender = threading.Thread(target=send)
    sender.start()
    wait_for(lambda: session.uploaded > before)
    try:
        yield replies
    finally:
        go_on.set()
        sender.join(PATIENCE)


def test_upload_that_breaks_off_leaves_nothing(served, visitor, session, media):
    arrived = []

    def pieces():
        yield bytes(9000)
        wait_for(lambda: session.uploaded == 9000)
        arrived.append(len(session.uploads))
        raise RuntimeError("the visitor leaves")

    with pytest.raises(RuntimeError, match="leaves"):
        visitor.http.put("file", content=pieces())
    assert arrived == [1]
    wait_for(lambda: not session.uploads)
    assert _room(served[0], visitor) == 0
    assert session.uploaded == 0  # what did not arrive takes nothing of the room allowed
    assert list(session.folder.iterdir()) == []
    assert visitor.http.put("file", content=(media / "a.png").read_bytes()).status_code == 200
    assert visitor.post("open").status_code == 200


def test_upload_given_up_does_not_take_the_next_one_with_it(visitor, session, media):
    content = (media / "a.png").read_bytes()
    with _half_sent(session, visitor, content) as replies:
        visitor.post("clear")
        visitor.http.put("file", content=content, headers={"x-name": "a.png"}).raise_for_status()
    assert replies[0].status_code == 409
    assert session.uploaded == len(content)
    assert visitor.post("open").json()["studies"][0]["name"] == "a.png"


def test_upload_under_way_is_not_opened(visitor, session, media):
    content = (media / "a.png").read_bytes()
    with _half_sent(session, visitor, content, "late.png") as replies:
        assert visitor.post("open").status_code == 400  # nothing has arrived whole
    assert replies[0].status_code == 409
    with _half_sent(session, visitor, content, "late.png") as replies:
        visitor.http.put("file", content=content, headers={"x-name": "whole.png"}).raise_for_status()
        assert [study["name"] for study in visitor.post("open").json()["studies"]] == ["whole.png"]
    assert replies[0].status_code == 409


def test_long_path_of_temporary_files_is_named(model_folder, tmp_path):
    place = tmp_path / ("long" * 30)
    place.mkdir()
    command = [sys.executable, "-m", "medmvl", "serve", "--model", str(model_folder), "--port", "0"]
    environment = os.environ | {"TMPDIR": str(place)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "Set TMPDIR to a folder with a shorter path." in done.stderr
