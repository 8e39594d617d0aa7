"""Every command and every Python block of docs/volumes.md runs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from imaging.dicom_writing import random_hu
from medmvl.cli.main import app

GUIDE = Path(__file__).parents[2] / "docs" / "volumes.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    nib.save(nib.Nifti1Image(random_hu((8, 30, 32)).T, np.diag([-0.7, -0.8, 2.0, 1.0])), tmp_path / "scan.nii.gz")
    turns = [{"from": "human", "value": "<image3d>What?"}, {"from": "gpt", "value": "Nothing."}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"id": "a", "conversations": turns, "image3d": ["scan.nii.gz"]}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_blocks_run_from_top_to_bottom(folder: Path) -> None:
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds.count("python") == 4
    assert kinds.count("bash") == 3
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, str(GUIDE), "exec"), {})
        elif kind == "yaml":
            (folder / "chest-small.yaml").write_text(text)
        else:
            for line in text.strip().splitlines():
                # one process: starting workers takes seconds, and has a test of its own
                words = shlex.split(line.replace("--workers 2", "--workers 1"))
                assert words[0] == "medmvl"
                result = CliRunner().invoke(app, words[1:])
                assert result.exit_code == 0, (line, result.output, result.exception)
    assert "chest-small" in (folder / "sheet.html").read_text()
    assert (folder / "cache" / "manifest.json").exists()
