"""A real Orthanc for tests, in a separate network namespace because it listens on all interfaces."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from waiting import wait_for

DICOM_PORT, HTTP_PORT, NODE_PORT = 4242, 8042, 11112
PLUGINS = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
needs_orthanc = pytest.mark.skipif(
    shutil.which("Orthanc") is None or not PLUGINS.exists(),
    reason="Orthanc is not installed (Debian: apt-get install orthanc orthanc-dicomweb dcmtk)",
)
_CLONE_NEWNET, _SIOCSIFFLAGS, _IFF_UP = 0x40000000, 0x8914, 0x1


@contextmanager
def own_network() -> Iterator[None]:
    """Give this thread, and what it starts, a separate network with nothing but loopback."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(_CLONE_NEWNET):
        os.close(before)
        pytest.skip("no network namespace can be made here (needs root)")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
        yield
    finally:
        libc.setns(before, _CLONE_NEWNET)
        os.close(before)


class Orthanc:
    """An Orthanc with DICOMweb; modalities push to it, and it knows the node.

    Args:
        folder: for its storage, which survives `stop` and `start`.
        users: name -> password; empty: no authentication.
    """

    url = f"http://127.0.0.1:{HTTP_PORT}"

    def __init__(self, folder: Path, users: dict[str, str] | None = None) -> None:
        self.folder, self.users = folder, users or {}
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.auth = next(iter(self.users.items()), None)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "orthanc.json").write_text(json.dumps(self._configuration()))

    def _configuration(self) -> dict[str, Any]:
        return {
            "Name": "test",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "HttpPort": HTTP_PORT,
            "DicomPort": DICOM_PORT,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": True,
            "AuthenticationEnabled": bool(self.users),
            "RegisteredUsers": self.users,
            "Plugins": [str(PLUGINS)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "DicomModalities": {"medmvl": ["MEDMVL", "127.0.0.1", NODE_PORT]},
            "DicomAlwaysAllowStore": True,
            "StableAge": 1,
        }

    def start(self) -> Orthanc:
        log = (self.folder / "orthanc.log").open("ab")
        self._process = subprocess.Popen(["Orthanc", str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        wait_for(self._answers, 60, "Orthanc answers")
        return self

    def _answers(self) -> bool:
        try:
            return self.session.get(f"{self.url}/system", timeout=5).ok
        except requests.ConnectionError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(120)
            self._process = None

    def get(self, path: str) -> Any:
        answer = self.session.get(f"{self.url}{path}", timeout=30)
        answer.raise_for_status()
        return answer.json() if "json" in answer.headers["Content-Type"] else answer.content

    def post(self, path: str, body: Any) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body)
        answer = self.session.post(f"{self.url}{path}", data=data, timeout=120)
        answer.raise_for_status()
        return answer.json()

    def results(self) -> dict[str, list[dict[str, Any]]]:
        """Return study instance UID -> main tags of the series that MedM-VL made."""
        found: dict[str, list[dict[str, Any]]] = {}
        for series in self.get("/series?expand"):
            tags = series["MainDicomTags"]
            if tags.get("Manufacturer") == "MedM-VL":
                study = self.get(f"/studies/{series['ParentStudy']}")["MainDicomTags"]["StudyInstanceUID"]
                found.setdefault(study, []).append({**tags, "instances": series["Instances"]})
        return found
