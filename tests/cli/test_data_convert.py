"""`medmvl data convert` and `audit` from the command line: flags, messages, exit status."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from medmvl.cli.data_convert import _flags
from medmvl.cli.main import app
from medmvl.errors import DataError
from medmvl.phantoms import split_patients, write_slake


@pytest.fixture
def slake(tmp_path):
    return write_slake(tmp_path / "slake", split_patients(0, {"train": 2, "test": 2}, (16, 32, 32), 64))


def invoke(*arguments: str):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_flags_become_settings() -> None:
    assert _flags(["--language", "en", "--multi-turn", "--turns=3"]) == {
        "language": "en",
        "multi_turn": "true",
        "turns": "3",
    }
    assert _flags(["--image-column", "file"]) == {"image": "file"}
    with pytest.raises(DataError, match="Unexpected argument"):
        _flags(["stray"])


def test_a_conversion_says_what_it_did(slake, tmp_path) -> None:
    out = tmp_path / "out"
    result = invoke("data", "convert", "slake", slake, "--out", out, "--multi-turn", "--set", "tasks=vqa")
    assert result.exit_code == 0, result.output
    assert "License: Apache-2.0 (drawn by medmvl; synthetic)" in result.stdout
    rows = [row for file in slake.glob("*.json") for row in json.loads(file.read_text())]
    chinese = sum(row["q_lang"] == "zh" for row in rows)
    assert chinese
    assert f"left out: {chinese} × language is 'zh'" in result.stdout
    assert json.loads((out / "report.json").read_text())["options"]["multi_turn"] is True


def test_a_wrong_flag_is_answered_with_the_right_ones(slake, tmp_path) -> None:
    result = invoke("data", "convert", "slake", slake, "--out", tmp_path / "out", "--langage", "en")
    assert isinstance(result.exception, DataError)
    assert "Did you mean 'language'" in str(result.exception)


def test_an_audit_of_leaking_splits_exits_with_2(slake, tmp_path) -> None:
    out = tmp_path / "out"
    assert invoke("data", "convert", "slake", slake, "--out", out).exit_code == 0
    clean = invoke("data", "audit", out / "train.jsonl", out / "test.jsonl", "--out", tmp_path / "audit.json")
    assert clean.exit_code == 0
    assert "No leak" in clean.stdout
    (out / "leaky.jsonl").write_text((out / "train.jsonl").read_text())
    leaking = invoke("data", "audit", out / "train.jsonl", out / "leaky.jsonl")
    assert leaking.exit_code == 2
    assert "LEAK" in leaking.stdout
