"""Against a real Orthanc: studies in, results out and read back."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pydicom
import pytest
import yaml

from dicom_validity import dicom_errors, needs_dciodvfy
from medmvl.cli.main import main
from waiting import wait_for
from ward.network import send
from ward.orthanc import DICOM_PORT, NODE_PORT, Orthanc, needs_orthanc, own_network
from ward.stub import EFFUSION, REPORT, write_ct

pytestmark = [pytest.mark.slow, needs_orthanc, needs_dciodvfy]
QUESTIONS = [EFFUSION, {**REPORT, "max_new_tokens": 8}]
KINDS = ["sr", "capture", "pdf", "key-objects"]
#: waits in seconds that a busy machine does not make too long for a test
PACE = {"quiet_seconds": 1, "retry_seconds": 1, "max_retry_seconds": 5}


@pytest.fixture
def network():
    with own_network():
        yield


@pytest.fixture
def orthanc(network, tmp_path):
    server = Orthanc(tmp_path / "orthanc").start()
    yield server
    server.stop()


def write_protocol(path, model, spool, **sections):
    values = {
        "name": "chest-ct",
        "model": str(model),
        "series": {"modality": "CT", "orientation": "axial"},
        "questions": QUESTIONS,
        "results": {"send": KINDS},
        "node": {"callers": ["ORTHANC"], "spool": str(spool), "port": NODE_PORT, **PACE},
        **sections,
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(params=["dicom", "dicomweb"])
def node(request, orthanc, tmp_path, model_folder):
    """A node of its own process, with a real model, that answers to Orthanc by C-STORE or STOW."""
    dicom = {"host": "127.0.0.1", "port": DICOM_PORT, "ae_title": "ORTHANC"}
    target = {"dicom": dicom} if request.param == "dicom" else {"dicomweb": {"url": f"{orthanc.url}/dicom-web"}}
    destinations = [{"name": "orthanc", **target}]
    protocol = write_protocol(tmp_path / "p.yaml", model_folder, tmp_path / "spool", destinations=destinations)
    log = (tmp_path / "node.log").open("wb")
    process = subprocess.Popen([sys.executable, "-m", "medmvl", "node", str(protocol)], stdout=log, stderr=log)
    wait_for(lambda: b"listens on" in (tmp_path / "node.log").read_bytes(), 120, "the node listens")
    yield tmp_path / "node.log"
    process.terminate()
    process.wait(60)


def push(orthanc, folder):
    """Put a study into Orthanc and let it push the study to the node; returns the study's Orthanc id."""
    for file in folder.glob("*.dcm"):
        study = orthanc.post("/instances", file.read_bytes())["ParentStudy"]
    orthanc.post("/modalities/medmvl/store", study)
    return study


def test_pushed_study_is_answered_and_read_back_equal(orthanc, node, tmp_path):
    push(orthanc, write_ct(tmp_path / "s"))
    uid = pydicom.dcmread(tmp_path / "s" / "slice0001.dcm").StudyInstanceUID
    found = wait_for(lambda: len(orthanc.results().get(uid, [])) == len(KINDS) and orthanc.results()[uid], 120)
    assert sorted(series["Modality"] for series in found) == ["DOC", "KO", "OT", "SR"]
    sent = {data.SOPInstanceUID: data for data in map(pydicom.dcmread, (tmp_path / "spool" / "results").rglob("*.dcm"))}
    for instance in (instance for series in found for instance in series["instances"]):
        content = orthanc.get(f"/instances/{instance}/file")
        back = pydicom.dcmread(io.BytesIO(content))
        original = sent.pop(back.SOPInstanceUID)
        assert back == original
        if "PixelData" in back:
            assert np.array_equal(back.pixel_array, original.pixel_array)
        (tmp_path / "back.dcm").write_bytes(content)
        assert not dicom_errors(tmp_path / "back.dcm")
    assert not sent
    assert b"phantom" not in node.read_bytes().lower()


def test_dicomweb_command_stores_results_next_to_the_study(network, tmp_path, model_folder, monkeypatch, capsys):
    server = Orthanc(tmp_path / "orthanc", users={"ai": "secret"}).start()
    try:
        for file in write_ct(tmp_path / "s").glob("*.dcm"):
            server.post("/instances", file.read_bytes())
        uid = str(pydicom.dcmread(file).StudyInstanceUID)
        protocol = write_protocol(tmp_path / "p.yaml", model_folder, tmp_path / "spool")

        def run(study, password):
            monkeypatch.setenv("PACS_PASSWORD", password)
            command = ["dicomweb", "--url", f"{server.url}/dicom-web", "--study", study, "--protocol", str(protocol)]
            login = ["--user", "ai", "--password-env", "PACS_PASSWORD", "--device", "cpu"]
            monkeypatch.setattr(sys, "argv", ["medmvl", *command, *login])
            with pytest.raises(SystemExit) as end:
                main()
            return end.value.code, capsys.readouterr().err

        assert run(uid, "secret")[0] == 0
        assert len(server.results()[uid]) == len(KINDS)
        assert run(uid, "secret")[0] == 0  # again: the same UIDs, so nothing is stored twice
        assert [len(series["instances"]) for series in server.results()[uid]] == [1] * len(KINDS)
        status, message = run(uid, "wrong")
        assert status == 2
        assert "HTTP status 401; check user and password" in message
        status, message = run("1.2.3.4", "secret")
        assert status == 2
        assert "no series of this study" in message
    finally:
        server.stop()


def test_absent_orthanc_is_waited_for(orthanc, node, tmp_path):
    orthanc.stop()
    assert set(send(write_ct(tmp_path / "s"), NODE_PORT, calling="ORTHANC")) == {0}
    wait_for(lambda: b"next attempt in" in node.read_bytes(), 120, "a delivery misses Orthanc")
    orthanc.start()
    wait_for(lambda: sum(map(len, orthanc.results().values())) == len(KINDS), 120)
