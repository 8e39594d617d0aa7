"""vLLM in its own environment, named by MEDMVL_VLLM_PYTHON: an offline job, or a server."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from import_graph import SOURCE
from ports import free_port

VARIABLE = "MEDMVL_VLLM_PYTHON"
_OFFLINE = Path(__file__).with_name("vllm_offline.py")
#: Seconds in which an engine starts on a busy machine.
_START = 400


def python() -> str | None:
    """Return the Python of the environment; None if it is not named."""
    return os.environ.get(VARIABLE)


def _environment() -> dict[str, str]:
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return {**os.environ, **settings, "PYTHONPATH": str(SOURCE), "PYTHONWARNINGS": "ignore"}


def answer_offline(job: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Run a job of `vllm_offline.py`; returns a row per question.

    Raises:
        AssertionError: with the end of what vLLM wrote, if it fails.
    """
    (folder / "job.json").write_text(json.dumps({**job, "answers": str(folder / "answers.json")}))
    command = [str(python()), str(_OFFLINE), str(folder / "job.json")]
    done = subprocess.run(command, env=_environment(), cwd=folder, capture_output=True, text=True, timeout=_START)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    rows: list[dict[str, Any]] = json.loads((folder / "answers.json").read_text())
    return rows


@contextmanager
def vllm_server(model: Path, folder: Path, *options: str, plugins: str | None = None) -> Iterator[str]:
    """Serve a folder under the name `tiny`; gives the address and ends the processes afterwards.

    Args:
        plugins: names of the plugins that vLLM loads; None: all that are installed.
    """
    port, log = free_port(), folder / "server.log"
    command = [str(python()), "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "512"]
    command += ["--enforce-eager", "--max-num-seqs", "4", *options]
    environment = _environment() | ({} if plugins is None else {"VLLM_PLUGINS": plugins})
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=stream, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + _START
        while not _healthy(address):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)


def _healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
