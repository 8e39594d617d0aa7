"""`medmvl compare` end to end: four stages, two variants that share three of them."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import yaml
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.files import iter_jsonl, read_json

STAGES = ("contrast", "align", "instruct", "adapt")
STEPS = {f"stages.{stage}.max_steps": 2 for stage in STAGES}


@pytest.mark.slow
def test_two_variants_share_their_first_stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matrix = {
        "name": "ranks",
        "recipe": "tiny.yaml",
        "set": {"data_root": "data", "phantoms": {"train": 8, "val": 2, "test": 4, "size": [8, 64, 64]}, **STEPS},
        "axes": {"rank": {f"r{rank}": {"stages.adapt.train.llm.lora.r": rank} for rank in (4, 8)}},
        "evaluate": {
            "benchmarks": ["phantom-ct"],
            "data_root": "data/phantoms/ct",
            "max_new_tokens": 4,
            "controls": ["blank"],
        },
    }
    (tmp_path / "matrix.yaml").write_text(yaml.safe_dump(matrix, sort_keys=False))
    words = ["compare", "matrix.yaml", "--out", "out", "--jobs", "2" if find_spec("ray") else "1"]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    summary = read_json(tmp_path / "out" / "compare.json")
    assert set(summary["benchmarks"]["phantom-ct"]["variants"]) == {"r4", "r8"}
    trained = [
        row["job"] for run in ("r4-seed0", "r8-seed0") for row in iter_jsonl(tmp_path / "out/runs" / run / "cost.jsonl")
    ]
    assert sorted(trained) == [
        *["evaluate"] * 2,
        *["stage adapt"] * 2,
        "stage align",
        "stage contrast",
        "stage instruct",
    ]
    stages = [row["stage"] for row in iter_jsonl(tmp_path / "out/runs/r8-seed0/log.jsonl")]
    assert stages == [name for name in STAGES for _ in range(2)]

    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    assert len(list(iter_jsonl(tmp_path / "out/runs/r4-seed0/cost.jsonl"))) == len(STAGES) + 1  # nothing was run again
