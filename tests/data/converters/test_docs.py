"""docs/datasets.md: its reference is what the code says, and its commands run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from datasets_reference import MARKER, describe_all
from medmvl.cli.main import app

from .helpers import picture, write_csv

GUIDE = Path(__file__).parents[3] / "docs" / "datasets.md"


def blocks(language: str) -> list[str]:
    text = GUIDE.read_text(encoding="utf-8").partition(MARKER)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_reference_is_what_the_code_says() -> None:
    generated = GUIDE.read_text(encoding="utf-8").partition(MARKER)[2]
    assert generated.strip() == describe_all().strip(), "run: python tools/datasets_reference.py"


def test_the_commands_of_the_guide_run(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [["file", "report", "patient"]]
    for number in range(6):
        picture(tmp_path / f"my-study/{number}.png")
        rows.append([f"{number}.png", "Clear lungs.", f"P{number}"])
    write_csv(tmp_path / "my-study/table.csv", rows)
    (snippet,) = blocks("python")
    exec(compile(snippet, str(GUIDE), "exec"), {})
    commands = [c for block in blocks("bash") for c in block.replace("\\\n", " ").splitlines() if c.strip()]
    assert len(commands) == 6
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "medmvl"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception}"
