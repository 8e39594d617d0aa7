"""Types the ten commands of docs/hospital.md as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from waiting import wait_for
from ward.orthanc import needs_orthanc, own_network

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "hospital.md").read_text(encoding="utf-8")
SECTION = GUIDE.split("## From an empty Orthanc")[1].split("\n## ")[0]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", SECTION, re.DOTALL)


def test_guide_has_ten_commands():
    assert len([line for block in blocks("bash") for line in block.splitlines()]) == 10


@pytest.mark.slow
@needs_orthanc
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_ten_commands_lead_to_results_in_orthanc(tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "orthanc.json").write_text(blocks("json")[0])
    (tmp_path / "protocol.yaml").write_text(blocks("yaml")[0])
    here = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}", "NO_PROXY": "*"}
    services: list[subprocess.Popen[bytes]] = []

    def serve(command: str, sign: bytes) -> None:
        log = tmp_path / f"{len(services)}.log"
        with log.open("wb") as out:
            services.append(
                subprocess.Popen(
                    ["bash", "-c", f"exec {command}"], cwd=tmp_path, env=environment, stdout=out, stderr=out
                )
            )
        wait_for(lambda: sign in log.read_bytes(), 180, command)

    def type_in(command: str) -> str:
        run = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
        return run.stdout

    commands = [line for block in blocks("bash") for line in block.splitlines()]
    with own_network():
        try:
            for command in commands[:4]:
                shown = type_in(command)
            assert "Pleural effusion" in shown
            serve(commands[4], b"Orthanc has started")
            serve(commands[5], b"listens on")
            for command in commands[6:8]:
                type_in(command)
            wait_for(lambda: "3 orthanc: sent" in type_in(commands[8]), 180, "the results are sent")
            assert type_in(commands[9]).count("AI research use: chest-ct") == 3
        finally:
            for service in services:
                service.terminate()
                service.wait(60)
