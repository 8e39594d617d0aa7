"""The commands of docs/evaluation.md, run as they are printed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.evaluation.report import LABELS
from medmvl.files import write_json, write_jsonl
from miniatures import write_table1, write_table2

GUIDE = Path(__file__).parents[2] / "docs" / "evaluation.md"
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
    if "--endpoint" not in line  # needs a server: test_challenges.py runs one
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The unpacked data sets of the paper's tables."""
    return write_table2(write_table1(tmp_path_factory.mktemp("tables"))) / "raw"


@pytest.fixture
def folder(tmp_path, monkeypatch, phantom_rows, model_folder, media, raw):
    """A working folder with every file that the guide names."""
    rows = [{**row, "image": ["a.png" if int(row["patient"][1:]) % 2 else "b.png"]} for row in phantom_rows]
    for name, said in (("predictions", None), ("other", "yes"), ("blank", "no"), ("shuffled", "no")):
        changed = [row if said is None else {**row, "prediction": said} for row in rows]
        write_jsonl(tmp_path / f"{name}.jsonl", changed)
    write_jsonl(tmp_path / "data.jsonl", rows)
    write_json(
        tmp_path / "theirs.json",
        [{"question_id": "a", "prompt": "Is it?", "gt": "yes", "text": "Yes."}],
    )
    write_jsonl(tmp_path / "log.jsonl", [{"stage": "a", "step": 1, "loss": 1.0}])
    reports = [row["id"] for row in rows if row["task"] == "report"]
    lines = ["id,Pleural effusion,Consolidation", *(f"{name},1,0" for name in reports)]
    others = [f"{row['id']},0,0" for row in rows if row["task"] != "report"]
    (tmp_path / "labels.csv").write_text("\n".join(lines + others) + "\n")
    few = [row for row in rows if row["patient"] in ("p0", "p1") and row["task"] == "vqa"]
    write_jsonl(tmp_path / "data" / "phantom-2d" / "test.jsonl", few)
    for name in ("a.png", "b.png"):
        shutil.copy(media / name, tmp_path / "data" / "phantom-2d")
    (tmp_path / "data" / "raw").symlink_to(raw)
    (tmp_path / "MODEL").symlink_to(model_folder)
    (tmp_path / "compare").symlink_to(GUIDE.parents[1] / "compare")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_runs(command, folder):
    words = shlex.split(command)
    assert words[0] == "medmvl"
    outcome = CliRunner().invoke(app, words[1:] + (["--max-new-tokens", "4"] if "--model" in words else []))
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    out = folder / words[words.index("--out") + 1]
    assert (out / "report.html").is_file() or {"--list", "--dry-run"} & set(words)


def test_the_guides_name_every_metric():
    text = GUIDE.read_text(encoding="utf-8") + GUIDE.with_name("evidence.md").read_text(encoding="utf-8")
    names = {key.removesuffix("_images").removesuffix("_volumes") for key in LABELS}
    assert [name for name in names if f"`{name}`" not in text] == []
