"""Identifiers of patients occur in no log line, status, metric or name of the node, whatever happens to a study."""

from __future__ import annotations

import json
import logging
import urllib.request
import warnings

import pydicom
import pytest

from medmvl.ward.node.spool import Spool
from medmvl.ward.node.state import NodeState
from medmvl.ward.node.status import describe_status
from ports import free_port
from waiting import wait_for
from ward.network import FakePacs, send
from ward.stub import StubAnswerer, change, write_ct
from ward.test_node import protocol_for, running, status

PLANTED = {
    "PatientName": "QUISENBERRY^THADDEUS",
    "PatientID": "MRN7731942",
    "PatientBirthDate": "19430217",
    "AccessionNumber": "ACC55091827",
    "StudyID": "STD440917",
    "ReferringPhysicianName": "VOSSKUHLER^IRMGARD",
    "InstitutionName": "Odilienspital",
    "StudyDescription": "CT of Quisenberry",
    "SeriesDescription": "QUISENBERRY 17.02.1943",
    "ProtocolName": "MRN7731942",
    "OtherPatientIDs": "OTH448220",
    "PatientComments": "Mr. Quisenberry, MRN7731942",
    "ImageComments": "Vosskuhler",
}
WORDS = (
    "quisenberry", "thaddeus", "mrn7731942", "19430217", "17.02.1943", "acc55091827", "std440917", "vosskuhler",
    "irmgard", "odilienspital", "oth448220",
)  # fmt: skip


@pytest.fixture
def pacs():
    fake = FakePacs().start()
    yield fake
    fake.stop()


def planted_ct(folder, index, **attributes):
    return write_ct(folder, index, **{**PLANTED, **attributes})


def broken_pixels(folder):
    for file in folder.glob("*.dcm"):
        change(file, PixelData=pydicom.dcmread(file).PixelData[:100])
    return folder


def invalid(folder, keyword, kind, value):
    """Write an attribute whose value its VR does not allow, as scanners do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
        for file in folder.glob("*.dcm"):
            data = pydicom.dcmread(file)
            data.add_new(keyword, kind, value)
            data.save_as(file)
    return folder


def sender_of(protocol, folder):
    """Send a study, except files that are missing on purpose; statuses do not matter here."""
    send(folder, protocol.node.port)
    return [value for path in folder.glob("*.dcm") for value in identifiers(path)]


def identifiers(path):
    data = pydicom.dcmread(path, stop_before_pixels=True)
    return [str(data.get(name, "")) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]


def test_nothing_that_the_node_says_names_a_patient(tmp_path, pacs, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    pacs.answers = [0xC001] * 3
    absent = FakePacs()
    protocol = protocol_for(tmp_path, pacs, absent, max_attempts=2, metrics_port=free_port())
    protocol = protocol.model_copy(update={"results": protocol.results.model_copy(update={"send": ["sr"]})})
    missing = planted_ct(tmp_path / "missing", 4)
    (missing / "slice0003.dcm").unlink()
    studies = [
        planted_ct(tmp_path / "good", 3),
        missing,
        planted_ct(tmp_path / "mr", 5, Modality="MR"),
        broken_pixels(planted_ct(tmp_path / "pixels", 6)),
        invalid(planted_ct(tmp_path / "date", 7), "PatientBirthDate", "LO", "MRN7731942 born 17.02.1943"),
        invalid(planted_ct(tmp_path / "number", 8), "InstanceNumber", "LO", "Quisenberry"),
        invalid(planted_ct(tmp_path / "place", 9), "ImagePositionPatient", "LO", ["Quisenberry", "MRN7731942", "3"]),
        invalid(planted_ct(tmp_path / "thickness", 10), "SliceThickness", "LO", "Quisenberry"),
        invalid(planted_ct(tmp_path / "uid", 11), "StudyInstanceUID", "LO", "MRN7731942"),
        invalid(planted_ct(tmp_path / "modality", 12), "Modality", "LO", "Quisenberry"),
    ]
    with warnings.catch_warnings(record=True), running(protocol, StubAnswerer()) as node:
        uids = [uid for folder in studies for uid in sender_of(protocol, folder)]
        wait_for(lambda: not {"receiving", "processing"} & set(status(protocol)["studies"]), 240)
        wait_for(lambda: status(protocol)["destinations"])
        address = f"http://127.0.0.1:{protocol.node.metrics_port}/metrics"
        metrics = urllib.request.urlopen(address).read().decode()
        found = status(protocol)
        names = [str(path.relative_to(tmp_path / "spool")) for path in (tmp_path / "spool").rglob("*")]
        node.wait(0.01)
    assert found["studies"]["failed"] >= 2
    assert found["outcomes"]["no-series"] >= 1
    assert found["troubled_deliveries"]
    captured = capfd.readouterr()
    said = {
        "log": caplog.text,
        "output": captured.out + captured.err,
        "status": describe_status(found) + json.dumps(found),
        "metrics": metrics,
        "file names": "\n".join(names),
    }
    assert "cannot be processed" in said["log"]
    leaks = {
        where: [word for word in (*WORDS, *uids) if len(word) > 5 and word in text.lower()]
        for where, text in said.items()
    }
    assert leaks == {where: [] for where in said}


def test_state_file_holds_the_uid_of_a_study_and_nothing_else_of_it(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs)
    with running(protocol, StubAnswerer()):
        send(planted_ct(tmp_path / "s", 3), protocol.node.port)
        wait_for(lambda: status(protocol)["deliveries"] == {"pacs0: sent": 2})
    NodeState(Spool(tmp_path / "spool").state_file).close()
    content = (tmp_path / "spool" / "state.sqlite").read_bytes().lower()
    assert not [word for word in WORDS if word.encode() in content]
