"""The wheel that `pip install` makes holds every file of the package, and the recipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]


def files_below(folder: Path, name: str) -> set[str]:
    """Return the paths of a folder's files, below `name`, as they stand in a wheel."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_every_file(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == files_below(ROOT / "src" / "medmvl", "medmvl") | files_below(ROOT / "recipes", "medmvl/recipes")
    assert "medmvl/experiments/phantom_llm/model.safetensors" in held
