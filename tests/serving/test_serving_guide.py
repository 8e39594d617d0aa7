"""docs/serving.md, typed as it stands there, and what a server leaves behind when SIGTERM ends it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import openai
import pytest

from medmvl.phantoms import draw_patient, write_dicom_series
from medmvl.serving.server.settings import Limits
from ports import free_port
from serving.live import part, user
from waiting import PATIENCE

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
START = GUIDE.split("## Start")[1].split("\n## ")[0]
SECRET = "Doe^Jane 1955-03-02"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", START, re.DOTALL)


@pytest.fixture
def place(tmp_path, model_folder) -> Path:
    """A folder like that of a clone after `make quickstart`, with a tiny model."""
    quickstart = tmp_path / "runs" / "quickstart"
    quickstart.mkdir(parents=True)
    (quickstart / "model").symlink_to(model_folder)
    write_dicom_series(quickstart / "example-dicom", draw_patient(0, 0, size=(12, 48, 48), radiograph_size=64))
    return tmp_path


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_guide_works_and_sigterm_answers_open_requests_first(place, media):
    port = str(free_port())
    command = next(line for line in blocks("bash")[0].splitlines() if "serve " in line)
    words = [*command.split()[1:], "--port", port, "--audit", "audit.jsonl"]
    short = tempfile.TemporaryDirectory()
    environment = {**os.environ, "TMPDIR": short.name, "OMP_NUM_THREADS": "1", "NO_PROXY": "*"}
    errors = (place / "errors").open("w+")
    server = subprocess.Popen(
        [sys.executable, "-m", "medmvl", *words],
        stdout=subprocess.PIPE, stderr=errors, text=True, cwd=place, env=environment,
    )  # fmt: skip
    try:
        line = server.stdout.readline()
        assert f"Serving model at http://127.0.0.1:{port}/v1" in line, (place / "errors").read_text()
        script = blocks("python")[0].replace("8000", port)
        said = subprocess.run(
            [sys.executable, "-c", script], cwd=place, env=environment, capture_output=True, text=True
        )
        assert said.returncode == 0, said.stderr
        assert 0 <= float(said.stdout.split()[-1]) < 1  # 256 tokens of random weights
        found = [
            subprocess.run(["bash", "-c", curl.replace("8000", port)], env=environment, capture_output=True, text=True)
            for curl in blocks("bash")[1].splitlines()
        ]
        assert [run.returncode for run in found] == [0] * 4
        for run, word in zip(
            found, ('"modalities"', '"confidence"', "data: [DONE]", "vllm:prompt_tokens_total"), strict=True
        ):
            assert word in run.stdout
        _end_in_the_middle(server, f"http://127.0.0.1:{port}/v1", media)
    finally:
        server.kill()
        server.wait()
    kept = (place / "errors").read_text() + line + (place / "audit.jsonl").read_text()
    assert "Doe" not in kept
    assert "1955-03" not in kept
    with short:
        assert not list(Path(short.name).rglob("*"))


def _end_in_the_middle(server: subprocess.Popen[str], url: str, media: Path) -> None:
    """Send SIGTERM while an answer is streamed; the answer and the exit status must be whole."""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE) as client:
        pictures = part("image", media / "a.png"), {**part("volume", media / "a.npy"), "uuid": "Doe"}
        stream = client.chat.completions.create(
            model="model",
            messages=user(f"What of {SECRET}?", *pictures),
            max_tokens=300,
            stream=True,
            temperature=1.0,
            seed=1,
        )
        chunks = iter(stream)
        next(chunks)
        server.send_signal(signal.SIGTERM)
        assert list(chunks)[-1].choices[0].finish_reason in ("stop", "length")
    assert server.wait(PATIENCE) == 0


def test_guide_states_the_defaults_of_all_limits():
    table = GUIDE.split("## Limits")[1].split("\n## ")[0]
    stated: dict[str, float] = {}
    for names, values in re.findall(r"^\| (`\w.*?) \| (.*?) \|", table, re.MULTILINE):
        numbers = [float(text.replace(" ", "")) for text in re.findall(r"\d[\d ]*(?:\.\d+)?", values)]
        stated |= dict(zip(re.findall(r"`(\w+)`", names), numbers, strict=True))
    assert stated == {name: float(value) for name, value in vars(Limits()).items()}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path):
    unit = tmp_path / "medmvl-serve.service"
    text = (ROOT / "deploy" / "medmvl-serve.service").read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/medmvl/bin/medmvl", sys.executable))
    run = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=PATIENCE)
    assert unit.name not in run.stderr
    assert "[Service]" in text
