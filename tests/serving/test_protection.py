"""Protection of the page and the server: temporary files, Host headers, messages."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from medmvl.serving.protection import host_check, temporary_home, without_paths


def test_messages_show_no_server_paths():
    message = "/tmp/medmvl/ab12/scan.png: cannot be read. Give a .png or https://example.org/a/b file."
    assert without_paths(message) == "scan.png: cannot be read. Give a .png or https://example.org/a/b file."


def test_other_host_names_are_refused():
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    routes = [Route("/", lambda request: PlainTextResponse("page"))]
    app = Starlette(routes=routes, middleware=[host_check("127.0.0.1", ["proxy.hospital"])])
    for name, status in {"127.0.0.1:7860": 200, "localhost": 200, "proxy.hospital": 200, "evil.example": 400}.items():
        assert TestClient(app).get("/", headers={"host": name}).status_code == status


def test_temporary_files_are_gone_after_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f"medmvl-page-{ended.pid}-x").mkdir()  # of a page that was killed
    with pytest.raises(SystemExit), temporary_home("medmvl-page-") as folder:  # noqa: PT012
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
        (Path(tempfile.mkdtemp()) / "scan").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert not list(tmp_path.iterdir())
