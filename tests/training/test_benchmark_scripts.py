"""The benchmark scripts run and write their tables; what they measure on a busy machine is not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, out: Path, *flags: str) -> list[dict]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(BENCHMARKS / script), "--out", str(out), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (markdown,) = out.glob("*.md")
    assert markdown.read_text().count("\n| ") >= 2
    (results,) = out.glob("*.json")
    return json.loads(results.read_text())["results"]


@pytest.mark.slow
def test_training_step(tmp_path):
    rows = run("training_step.py", tmp_path, "--size", "tiny", "--epochs", "1", "--threads", "1", "--only", "2: peer, fp32;2: ours, fp32")  # fmt: skip
    assert {row["group"] for row in rows} == {"stage 2", "stage 2, lever by lever"}
    ours = next(row for row in rows if row["variant"] == "stage 2: ours, fp32")
    assert ours["faster_than_own_peer"] > 0
    assert ours["megabytes"] > 0


@pytest.mark.slow
def test_gpu_training_in_its_tiny_form(tmp_path):
    rows = run("gpu_training.py", tmp_path, "--tiny", "--steps", "1")
    assert len(rows) == 7
    assert all(row["tokens_per_s"] > 0 and 0 < row["mfu"] < 1 for row in rows)


@pytest.mark.slow
def test_record_scale(tmp_path):
    rows = run("record_scale.py", tmp_path, "--sizes", "100", "1000")
    assert [(row["records"], row["format"]) for row in rows] == [(n, f) for n in (100, 1000) for f in ("jsonl", "parquet")]  # fmt: skip
