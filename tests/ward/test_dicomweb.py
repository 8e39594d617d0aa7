"""STOW against a server that fails in every way it can; a real one is in test_orthanc.py."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from medmvl.errors import WardError
from medmvl.ward.dicomweb import connect, process_web_study, stow
from medmvl.ward.network_settings import WebTarget
from medmvl.ward.process import process_study
from ports import free_port
from ward.stub import StubAnswerer, make_protocol, write_ct

JSON = "application/dicom+json"
LISTED = [{"00080018": {"vr": "UI", "Value": ["1.2"]}}]
FAILED = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA900]}}]}}


@pytest.fixture
def server():
    """An HTTP server whose answers a test sets: POST and GET as (status, type, body)."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status, kind, body):
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            self.server.seen.append(self.headers)
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    self.rfile.read(size + 2)
                self.rfile.readline()
            else:
                self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(*self.server.post)

        def do_GET(self):
            self.server.seen.append(self.headers)
            self._answer(*self.server.get)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.post, server.get = [], (200, JSON, {}), (200, JSON, LISTED)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def files(tmp_path):
    return process_study(write_ct(tmp_path / "s"), make_protocol(**{"results.send": ["sr"]}), StubAnswerer()).write(
        tmp_path
    )


def target(server, **changes):
    return WebTarget(url=f"http://127.0.0.1:{server.server_port}", **changes)


@pytest.mark.parametrize(
    ("post", "get", "state", "reason"),
    [
        ((200, JSON, {}), (200, JSON, LISTED), "stored", ""),
        ((200, "text/plain", b"ok"), (200, JSON, LISTED), "stored", ""),
        ((200, JSON, {}), (200, JSON, []), "unreachable", "does not list the object"),
        ((200, JSON, FAILED), (200, JSON, LISTED), "rejected", "STOW failure reason A900H"),
        ((400, JSON, {}), (200, JSON, LISTED), "rejected", "HTTP status 400"),
        ((409, JSON, {}), (200, JSON, LISTED), "rejected", "HTTP status 409"),
        ((401, JSON, {}), (200, JSON, LISTED), "unreachable", "check user and password or token"),
        ((503, JSON, {}), (200, JSON, LISTED), "unreachable", "HTTP status 503"),
        ((200, JSON, {}), (500, JSON, []), "unreachable", "HTTP status 500"),
    ],
)
def test_every_answer_has_its_outcome(server, files, post, get, state, reason):
    server.post, server.get = post, get
    (outcome,) = stow(target(server), files)
    assert outcome.state == state
    assert reason in outcome.reason


def test_unlisted_object_counts_as_stored_without_verification(server, files):
    server.get = (200, JSON, [])
    assert stow(target(server, verify=False), files)[0].state == "stored"


def test_absent_server_is_unreachable(files):
    assert stow(WebTarget(url=f"http://127.0.0.1:{free_port()}"), files)[0].reason == "no connection"


def test_credentials_come_from_the_environment(server, files, monkeypatch):
    monkeypatch.setenv("TOKEN", "abc")
    monkeypatch.setenv("PASSWORD", "secret")
    stow(target(server, token_env="TOKEN"), files)
    assert {headers["Authorization"] for headers in server.seen} == {"Bearer abc"}
    server.seen.clear()
    stow(target(server, user="ai", password_env="PASSWORD"), files)
    assert {headers["Authorization"] for headers in server.seen} == {"Basic YWk6c2VjcmV0"}
    monkeypatch.delenv("TOKEN")
    with pytest.raises(WardError, match="environment variable TOKEN is not set"):
        connect(target(server, token_env="TOKEN"))


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ([], "has no series of this study"),
        ([{"0020000E": {"vr": "UI", "Value": ["1.2"]}, "00080060": {"vr": "CS", "Value": ["MR"]}}], "it has MR"),
    ],
)
def test_study_without_wanted_series_is_refused(server, series, message):
    server.get = (200, JSON, series)
    with pytest.raises(WardError, match=message):
        process_web_study(target(server), "1.2.3", make_protocol(), StubAnswerer())
