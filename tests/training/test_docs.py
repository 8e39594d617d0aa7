"""Commands and recipes in the guides are run as they stand there, on small data."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.training.recipe_io import parse_recipe

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
GUIDES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("training", "own-data")}


def blocks(guide: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDES[guide], flags=re.DOTALL)


@pytest.fixture
def workplace(tmp_path, monkeypatch, data_folder):
    """A folder as a user has it: the recipes, own data under data/mine, and a PACS export under data/export."""
    (tmp_path / "recipes").mkdir()
    # Smaller than the shipped one, so that the lesson takes seconds here.
    text = (ROOT / "recipes" / "tiny.yaml").read_text()
    text = re.sub(r"max_steps: \d+", "max_steps: 2", text).replace(
        "{train: 24, val: 4, test: 8}", "{train: 4, val: 2, test: 2}"
    )
    (tmp_path / "recipes" / "tiny.yaml").write_text(text)
    shutil.copytree(data_folder, tmp_path / "data" / "mine")
    shutil.copy(tmp_path / "data" / "mine" / "d.jsonl", tmp_path / "data" / "mine" / "train.jsonl")
    (tmp_path / "data" / "export").mkdir()
    shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / "data" / "export" / "slice.dcm")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_runs(guide, workplace):
    commands = [line for block in blocks(guide, "bash") for line in block.splitlines() if line.strip()]
    assert commands
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == "pip":  # not run, since tests install nothing; what it names must be an extra of ours
            extra = re.fullmatch(r"medmvl\[(.+)\]", arguments[-1])
            assert extra, command
            assert extra.group(1) in EXTRAS, command
            continue
        assert program == "medmvl"
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, f"{command}\n{result.output}"


def test_recipes_in_the_guides_are_valid():
    mine = yaml.safe_load(blocks("own-data", "yaml")[0])
    assert parse_recipe(mine).stages[0].train["llm"].mode == "lora"
    stages = yaml.safe_load(blocks("training", "yaml")[0])
    data = {"a": {"path": "a.jsonl"}, "held-out": {"path": "b.jsonl"}}
    recipe = parse_recipe(mine | {"data": data} | stages)
    assert [stage.name for stage in recipe.stages] == ["align", "instruct"]


def test_the_record_in_the_guide_is_one():
    from medmvl.data.record import parse_record

    sample = parse_record(json.loads(blocks("own-data", "json")[0]), "docs/own-data.md")
    assert sample.images == ("case-001.png",)
