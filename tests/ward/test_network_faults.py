"""Faults on the wire: the node stays up and continues to answer."""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
import subprocess
from contextlib import ExitStack, contextmanager

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from medmvl.ward.node import listener
from medmvl.ward.node.connections import MAX_PDU_BYTES
from ports import free_port
from waiting import wait_for
from ward.network import FakePacs, send
from ward.stub import StubAnswerer, change, write_ct
from ward.test_node import protocol_for, running, status

ASSOCIATE, DATA = 1, 4


@pytest.fixture
def pacs():
    fake = FakePacs().start()
    yield fake
    fake.stop()


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """Return a PDU, of a false length if one is given."""
    return struct.pack(">BBI", kind, 0, len(body) if length is None else length) + body


@contextmanager
def still_answers(tmp_path, pacs, protocol):
    """Run a node, let the block do its harm, then expect a study to be answered as if nothing had happened."""
    with running(protocol, StubAnswerer()) as node:
        yield protocol.node.port
        assert set(send(write_ct(tmp_path / "s"), protocol.node.port)) == {0}
        wait_for(lambda: len(pacs.stored) == 2)
        node.wait(0.01)  # raises if a thread has failed


MALFORMED = {
    "nothing": b"",
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "noise": bytes(range(256)) * 8,
    "cut": pdu(ASSOCIATE, b"\x00\x01\x00\x00", length=4000),
    "zeros": pdu(ASSOCIATE, b"\x00" * 68),
    "ones": pdu(ASSOCIATE, b"\xff" * 68),
    "data first": pdu(DATA, b"\x00" * 12),
    "unknown": pdu(99, b"\x00" * 12),
    "huge": pdu(ASSOCIATE, b"", length=2**32 - 1),
}


def test_malformed_bytes_leave_the_node_up(tmp_path, pacs):
    with still_answers(tmp_path, pacs, protocol_for(tmp_path, pacs)) as port:
        for content in [*MALFORMED.values()] * 3:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(content)


def associate(port, calling="MODALITY"):
    entity = AE(ae_title=calling)
    entity.add_requested_context(CTImageStorage)
    association = entity.associate("127.0.0.1", port, ae_title="MEDMVL")
    assert association.is_established
    return association


@pytest.mark.parametrize("how", ["abort", "close"])
def test_lost_association_keeps_what_was_confirmed(tmp_path, pacs, how):
    protocol = protocol_for(tmp_path, pacs)
    files = sorted(write_ct(tmp_path / "s").glob("*.dcm"))
    with running(protocol) as node:
        association = associate(protocol.node.port)
        for file in files[:5]:
            assert association.send_c_store(pydicom.dcmread(file)).Status == 0
        if how == "abort":
            association.abort()
        else:
            association.dul.socket.close()
        assert len(list(node.spool.studies.glob("*/*.dcm"))) == 5
        send(files[5:], protocol.node.port)
        wait_for(lambda: len(pacs.stored) >= 2 and status(protocol)["studies"] == {"done": 1})
    assert not list(node.spool.studies.glob("*/.*"))


def test_cut_data_pdu_stores_nothing(tmp_path, pacs):
    with still_answers(tmp_path, pacs, protocol_for(tmp_path, pacs)) as port:
        association = associate(port)
        association.dul.socket.send(pdu(DATA, b"\x00\x00\x10\x00\x01\x03" + b"\x00" * 20, length=5000))
        association.dul.socket.close()
        wait_for(lambda: not list((tmp_path / "spool" / "studies").glob("*/*.dcm")))


def test_silent_connections_do_not_hold_up_others(tmp_path, pacs):
    with still_answers(tmp_path, pacs, protocol_for(tmp_path, pacs)) as port:
        for _ in range(20):
            socket.create_connection(("127.0.0.1", port))


def _all_confirmed(folder, port) -> bool:
    """Send a study and return whether the node took all of it, which it does not if the sender pauses for too long."""
    try:
        return set(send(folder, port)) == {0}
    except RuntimeError:  # the association was aborted in the middle
        return False


def test_half_sent_pdus_free_their_associations(tmp_path, pacs, monkeypatch):
    monkeypatch.setattr(listener, "_MAX_ASSOCIATIONS", 3)
    protocol = protocol_for(tmp_path, pacs, network_timeout=1.0)
    with running(protocol), ExitStack() as held:
        for _ in range(6):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", protocol.node.port)))
            connection.sendall(MALFORMED["cut"])
        folder = write_ct(tmp_path / "s")
        wait_for(lambda: _all_confirmed(folder, protocol.node.port))
        wait_for(lambda: len(pacs.stored) == 2)


def test_announced_giant_pdu_ends_the_connection(tmp_path, pacs):
    with still_answers(tmp_path, pacs, protocol_for(tmp_path, pacs)) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        connection.sendall(pdu(DATA, b"", length=MAX_PDU_BYTES + 1))
        assert connection.recv(100)[:1] in (b"", b"\x07")  # closed, or A-ABORT


def test_object_above_the_limit_is_dropped(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs, max_object_megabytes=1)
    large = min(write_ct(tmp_path / "large").glob("*.dcm"))
    change(large, Rows=1024, Columns=1024, PixelData=bytes(2 * 1024 * 1024))
    with still_answers(tmp_path, pacs, protocol) as port:
        assert send([large], port) == [-1]  # no answer
        wait_for(lambda: status(protocol)["counters"].get("objects_refused_large") == 1)
        assert not list((tmp_path / "spool" / "studies").rglob("*.dcm"))


def test_limit_of_size_holds_for_each_object_alone(tmp_path, pacs):
    protocol = protocol_for(tmp_path, pacs, max_object_megabytes=1)
    files = sorted(write_ct(tmp_path / "s").glob("*.dcm"))
    for file in files:
        change(file, Rows=512, Columns=512, PixelData=bytes(2 * 512 * 512))
    with running(protocol):
        assert set(send(files, protocol.node.port)) == {0}


def test_deflated_transfer_syntax_is_not_accepted(tmp_path, pacs):
    with still_answers(tmp_path, pacs, protocol_for(tmp_path, pacs)) as port:
        entity = AE(ae_title="MODALITY")
        entity.add_requested_context(CTImageStorage, DeflatedExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", port, ae_title="MEDMVL")
        assert not association.accepted_contexts


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A self-signed certificate for localhost and its key, made by openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return str(folder / "cert.pem"), str(folder / "key.pem")


def test_tls_is_required_where_it_is_set(tmp_path, pacs, certificates):
    certificate, key = certificates
    tls = {"certificate": certificate, "key": key, "ca": certificate}
    protocol = protocol_for(tmp_path, pacs, tls=tls)
    folder = write_ct(tmp_path / "s")
    context = ssl.create_default_context(cafile=certificate)
    with running(protocol):
        assert send(folder, protocol.node.port) == []  # no TLS
        assert send(folder, protocol.node.port, tls=context) == []  # no certificate of its own
        context.load_cert_chain(certificate, key)
        assert set(send(folder, protocol.node.port, tls=context)) == {0}
        wait_for(lambda: len(pacs.stored) == 2)


def test_silent_tls_connections_hold_up_no_other(tmp_path, pacs, certificates):
    certificate, key = certificates
    protocol = protocol_for(tmp_path, pacs, tls={"certificate": certificate, "key": key})
    with running(protocol), ExitStack() as held:
        for _ in range(5):
            held.enter_context(socket.create_connection(("127.0.0.1", protocol.node.port)))
        context = ssl.create_default_context(cafile=certificate)
        assert set(send(write_ct(tmp_path / "s"), protocol.node.port, tls=context)) == {0}
        wait_for(lambda: len(pacs.stored) == 2)


def test_results_are_sent_by_tls(tmp_path, pacs, certificates):
    certificate, key = certificates
    listener = protocol_for(tmp_path / "b", pacs, tls={"certificate": certificate, "key": key}, callers=["MEDMVL"])
    remote = {"host": "localhost", "port": listener.node.port, "ae_title": "MEDMVL", "tls": {"ca": certificate}}
    protocol = protocol_for(tmp_path / "a", port=free_port())
    protocol = protocol.model_copy(
        update={"destinations": [type(listener.destinations[0]).model_validate({"name": "b", "dicom": remote})]}
    )
    with running(listener), running(protocol):
        send(write_ct(tmp_path / "s"), protocol.node.port)
        # The second node ignores results of MedM-VL, but it confirms them.
        wait_for(lambda: status(protocol)["deliveries"] == {"b: sent": 2})
        assert status(listener)["counters"]["own_results_ignored"] == 2
