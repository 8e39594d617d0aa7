"""Types docs/first-model.md, on a quickstart in small, and the README's section on own data as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medmvl.data.formats import read_samples
from medmvl.experiments.quickstart import quickstart
from medmvl.files import read_json
from medmvl.processing.stored_prompts import read_prompts

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "first-model.md").read_text(encoding="utf-8")
OWN_DATA = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own data")[1].split("\n## ")[0]


def blocks(kind: str, text: str = GUIDE) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def type_in(tmp_path):
    """Run a command in a folder that has the recipes, as a clone has; it must succeed."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MEDMVL_PSEUDONYM_KEY": str(tmp_path / "key")}

    def run_one(*words: str) -> str:
        run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{words}\n{run.stdout}\n{run.stderr}"
        return run.stdout

    return run_one


def test_record_of_the_readme_is_one_line_of_json_lines(tmp_path):
    (block,) = blocks("json", OWN_DATA)
    (tmp_path / "data.jsonl").write_text(block)
    (sample,) = read_samples(tmp_path / "data.jsonl")
    assert sample.volumes == ("ct/case-1.nii.gz",)


@pytest.mark.slow  # trains the tiny recipe and starts a command five times: half a minute
def test_own_data_section_of_the_readme_can_be_typed(tmp_path, type_in):
    (block,) = blocks("bash", OWN_DATA)
    for command in block.splitlines():
        said = type_in("bash", "-c", command)
    assert said.startswith("own: ")
    assert (tmp_path / "results/tiny/report.html").is_file()


@pytest.mark.slow  # trains twice and starts a command ten times: two minutes
def test_the_guide_leads_from_an_export_to_a_model(tmp_path, type_in):
    quickstart(tmp_path / "runs/quickstart", 0, scale=0.04)
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) > 9
    for command in commands:
        type_in("bash", "-c", command)
    (program,) = blocks("python")
    type_in(sys.executable, "-c", program)
    assert (tmp_path / "sheet.html").stat().st_size > 10_000
    assert (tmp_path / "runs/own-export/model/adapter/adapter_config.json").is_file()
    model = tmp_path / "runs/own-export/model"
    card = (model / "README.md").read_text()
    assert "- synthetic-data\n" in card
    assert "Own records (56 records of 6 patients, synthetic data)" in card
    assert read_prompts(model).synthetic
    assert ("Yes", "No") in {tuple(sorted(one.options, reverse=True)) for one in read_prompts(model).tasks[0].prompts}
    results = read_json(tmp_path / "results/results.json")
    assert "shuffled" in str(results)
