"""A real full disk: a small file system of its own holds the spool."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time

import numpy as np
import pydicom
import pytest

from medmvl.ward.node.spool import Spool
from medmvl.ward.node.state import NodeState
from medmvl.ward.node.status import describe_status
from waiting import wait_for
from ward.network import FakePacs, send
from ward.stub import StubAnswerer, change, write_ct
from ward.test_node import protocol_for, running, status

_SIZE = "6m"


@pytest.fixture
def disk(tmp_path):
    """A folder on a file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def pacs():
    fake = FakePacs().start()
    yield fake
    fake.stop()


def fill(folder, leave=0):
    """Fill the file system except for some bytes and return the file that does so."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as handle:
        space = os.statvfs(folder)
        handle.write(bytes(max(space.f_bavail * space.f_frsize - leave, 0)))
    return ballast


def big_ct(folder):
    """Write a CT whose slices fill the disk within one study."""
    for file in write_ct(folder).glob("*.dcm"):
        change(file, Rows=352, Columns=352, PixelData=bytes(2 * 352 * 352))
    return folder


def test_disk_that_fills_while_objects_arrive_loses_nothing(tmp_path, disk, pacs, monkeypatch):
    monkeypatch.setattr(Spool, "free_bytes", lambda self: 2**40)  # the space goes between the check and the write
    protocol = protocol_for(tmp_path, pacs, spool=str(disk / "spool"), min_free_megabytes=0)
    files = sorted(big_ct(tmp_path / "s").glob("*.dcm"))
    pixels = pydicom.dcmread(files[0]).pixel_array
    with running(protocol, StubAnswerer()) as node:
        ballast = fill(disk, leave=3 * files[0].stat().st_size)
        statuses = send(files, protocol.node.port)
        assert {0, 0xA700} == set(statuses)
        spooled = list(node.spool.studies.glob("*/*.dcm"))
        assert len(spooled) == statuses.count(0)
        assert all(np.array_equal(pydicom.dcmread(path).pixel_array, pixels) for path in spooled)
        assert not list(node.spool.studies.glob("*/.*"))
        ballast.unlink()
        left = [file for file, code in zip(files, statuses, strict=True) if code]  # as a sender does
        assert set(send(left, protocol.node.port)) == {0}
        wait_for(lambda: status(protocol)["deliveries"].get("pacs0: sent", 0) >= 2)
        node.wait(0.01)


def test_completely_full_disk_ends_neither_the_node_nor_a_study(tmp_path, disk, pacs):
    protocol = protocol_for(tmp_path, pacs, spool=str(disk / "spool"), min_free_megabytes=0)
    folder = write_ct(tmp_path / "s")
    with running(protocol, StubAnswerer()) as node:
        ballast = fill(disk)
        assert set(send(folder, protocol.node.port)) == {0xA700}
        time.sleep(3)  # longer than the time between two signs of life, which cannot be written either
        node.wait(0.01)
        assert "objects are refused" in describe_status({**status(protocol), "disk_full": True})
        ballast.unlink()
        assert set(send(folder, protocol.node.port)) == {0}
        wait_for(lambda: len(pacs.stored) == 2)
        node.wait(0.01)
    assert status(protocol)["studies"] == {"done": 1}


def test_state_survives_a_transaction_on_a_full_disk(disk):
    state = NodeState(Spool(disk / "spool").state_file)
    state.count("before")
    ballast = fill(disk)
    failures = 0
    for number in range(200):
        try:
            state.note_arrival(f"{number:032d}", "1.2", 0)
        except sqlite3.OperationalError:
            failures += 1
    assert failures
    ballast.unlink()
    state.count("after")
    assert state.counters() == {"before": 1, "after": 1}
    assert len(state.studies()) == 200 - failures
    state.close()
