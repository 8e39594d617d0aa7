"""Types docs/first-model.md as it stands, on a quickstart in small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medmvl.experiments.quickstart import quickstart
from medmvl.files import read_json

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "first-model.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.slow  # trains twice and starts a command ten times: two minutes
def test_the_guide_leads_from_an_export_to_a_model(tmp_path):
    quickstart(tmp_path / "runs/quickstart", 0, scale=0.04)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MEDMVL_PSEUDONYM_KEY": str(tmp_path / "key")}

    def type_in(*words: str) -> str:
        run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{words}\n{run.stdout}\n{run.stderr}"
        return run.stdout

    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) > 9
    for command in commands:
        type_in("bash", "-c", command)
    (program,) = blocks("python")
    type_in(sys.executable, "-c", program)
    assert (tmp_path / "sheet.html").stat().st_size > 10_000
    assert (tmp_path / "runs/own-export/model/adapter/adapter_config.json").is_file()
    results = read_json(tmp_path / "results/results.json")
    assert "shuffled" in str(results)
