"""Fifty studies from eight senders while the node is killed again and again and Orthanc goes away for a minute.

With the environment variable MEDMVL_SOAK_OUT the figures are written to that file. It takes about four minutes on two idle
cores; on a busy machine run it with `-o faulthandler_timeout=0`, or pytest ends it after ten minutes.
"""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pydicom
import pytest

from waiting import wait_for
from ward.network import send
from ward.orthanc import DICOM_PORT, NODE_PORT, Orthanc, needs_orthanc, own_network
from ward.stub import EFFUSION, write_ct
from ward.test_orthanc import write_protocol

pytestmark = [pytest.mark.slow, needs_orthanc]
STUDIES, SENDERS, KILLS, AWAY = 50, 8, 10, 60


class Victim:
    """A node in a separate process that is killed and started again."""

    def __init__(self, protocol: Path, log: Path) -> None:
        self._command = [sys.executable, "-m", "medmvl", "node", str(protocol), "--device", "cpu"]
        self._log = log
        self.starts = 0

    def start(self) -> None:
        begin = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        self.starts += 1
        self._begin = begin
        wait_for(lambda: b"listens on" in self._log.read_bytes()[begin:], 180, "the node listens")

    def has_loaded(self) -> bool:
        return b"the model is loaded" in self._log.read_bytes()[self._begin :]

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def push_until_confirmed(studies: list[Path], calling: str, seed: int, tally: Counter[str]) -> None:
    """Send studies one by one as a modality does: what was not confirmed is sent again."""
    rng = random.Random(seed)
    for folder in studies:
        left = sorted(folder.glob("*.dcm"))
        while left:
            try:
                statuses = send(left, NODE_PORT, calling=calling)
            except (RuntimeError, ValueError, OSError):
                statuses = []
            tally["attempts"] += 1
            tally["objects confirmed"] += statuses.count(0)
            left = [file for index, file in enumerate(left) if index >= len(statuses) or statuses[index] != 0]
            if left:
                time.sleep(rng.uniform(0.5, 2))
        time.sleep(rng.uniform(0, 6))


def go_away(orthanc: Orthanc, log: Path) -> None:
    """Stop Orthanc as soon as it has the first results, for a while and until a delivery has missed it."""
    wait_for(lambda: len(orthanc.results()) >= 3, 600, "the first results")
    orthanc.stop()
    time.sleep(AWAY)
    wait_for(lambda: b"next attempt in" in log.read_bytes(), 600, "a delivery misses Orthanc")
    orthanc.start()


def test_no_study_is_lost_and_no_result_comes_twice(tmp_path, model_folder):
    folders = [write_ct(tmp_path / "in" / f"{index:02d}", index) for index in range(STUDIES)]
    uids = {str(pydicom.dcmread(folder / "slice0001.dcm").StudyInstanceUID) for folder in folders}
    assert len(uids) == STUDIES
    callers = [f"SENDER{number}" for number in range(SENDERS)]
    protocol = write_protocol(
        tmp_path / "p.yaml",
        model_folder,
        tmp_path / "spool",
        questions=[EFFUSION],
        results={"send": ["sr", "capture"]},
        destinations=[
            {"name": "orthanc", "dicom": {"host": "127.0.0.1", "port": DICOM_PORT, "ae_title": "ORTHANC"}}
        ],
        node={"callers": callers, "spool": str(tmp_path / "spool"), "port": NODE_PORT, "quiet_seconds": 2,
              "retry_seconds": 1, "max_retry_seconds": 10},
    )  # fmt: skip
    rng, tally = random.Random(0), Counter()
    with own_network():
        orthanc = Orthanc(tmp_path / "orthanc").start()
        node = Victim(protocol, tmp_path / "node.log")
        begin = time.monotonic()
        node.start()
        senders = [
            threading.Thread(target=push_until_confirmed, args=(folders[number::SENDERS], caller, number, tally))
            for number, caller in enumerate(callers)
        ]
        for sender in senders:
            sender.start()
        away = threading.Thread(target=go_away, args=(orthanc, tmp_path / "node.log"))
        away.start()
        for number in range(KILLS):
            if number % 2:  # every other kill comes while studies are processed and sent
                wait_for(node.has_loaded, 300, "the model is loaded")
            time.sleep(rng.uniform(0, 8))
            node.kill()
            node.start()
        for sender in senders:
            sender.join(600)
            assert not sender.is_alive()
        away.join(900)
        assert not away.is_alive()
        wait_for(lambda: len(orthanc.results()) == STUDIES, 600, "all studies have results")
        wait_for(lambda: _waiting(tmp_path / "spool") == 0, 60, "nothing waits")
        seconds = time.monotonic() - begin
        time.sleep(5)  # time for a result too many
        node.process.terminate()
        node.process.wait(60)
        results = orthanc.results()
        changes = orthanc.get("/changes?limit=100000")["Changes"]
        orthanc.stop()
    assert set(results) == uids
    kinds = [sorted(series["Modality"] for series in found) for found in results.values()]
    assert kinds == [["OT", "SR"]] * STUDIES
    assert {len(series["instances"]) for found in results.values() for series in found} == {1}
    stored = Counter(change["ID"] for change in changes if change["ChangeType"] == "NewInstance")
    assert len(stored) == 2 * STUDIES
    assert set(stored.values()) == {1}
    log = (tmp_path / "node.log").read_text()
    assert "phantom" not in log.lower()
    repeated = log.count("next attempt in")
    assert repeated  # Orthanc was missed
    figures = {
        "studies with results": len(results),
        "results stored twice": sum(count - 1 for count in stored.values()),
        "studies without results": len(uids - set(results)),
        "failed deliveries that were repeated": repeated,
        "kills of the node": node.starts - 1,
        "seconds in all": round(seconds, 1),
        "associations by senders": tally["attempts"],
        "objects confirmed to senders": tally["objects confirmed"],
    }
    if out := os.environ.get("MEDMVL_SOAK_OUT"):
        Path(out).write_text(json.dumps({**_conditions(), **figures}, indent=2) + "\n")


def _waiting(spool: Path) -> int:
    with sqlite3.connect(f"file:{spool / 'state.sqlite'}?mode=ro", uri=True) as base:
        return base.execute("SELECT COUNT(*) FROM deliveries WHERE state != 'sent'").fetchone()[0]


def _conditions() -> dict[str, object]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "studies": STUDIES,
        "senders": SENDERS,
        "seconds without Orthanc": AWAY,
        "python": platform.python_version(),
        **{name: version(name) for name in ("pynetdicom", "pydicom", "highdicom")},
    }
