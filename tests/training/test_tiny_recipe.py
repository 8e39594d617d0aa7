"""The smallest full path runs as its header says, through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.errors import RecipeError
from medmvl.files import iter_jsonl
from medmvl.training.phantoms import draw_phantoms
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run_folder import read_log

TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"


def test_tiny_recipe_runs_from_nothing(tmp_path):
    # Fewer steps and patients than the recipe has: what is tested is the path, not the patience.
    changes = ["phantoms={train: 4, val: 2, test: 2}", "run.device=cpu", f"data_root={tmp_path / 'data'}"]
    changes += [f"stages.{name}.max_steps=2" for name in ("contrast", "align", "instruct", "adapt")]
    arguments = ["train", str(TINY), "--out", str(tmp_path / "run")]
    for change in changes:
        arguments += ["--set", change]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert str(tmp_path / "run" / "model") in result.output
    stages = [row["stage"] for row in read_log(tmp_path / "run" / "log.jsonl")]
    assert stages == ["contrast"] * 2 + ["align"] * 2 + ["instruct"] * 2 + ["adapt"] * 2
    assert (tmp_path / "data" / "phantoms" / "2d" / "test.jsonl").is_file()
    again = CliRunner().invoke(app, [*arguments, "--resume"], catch_exceptions=False)
    assert again.exit_code == 0
    other = load_recipe(TINY, [*changes, "phantoms.seed=1"])
    with pytest.raises(RecipeError, match="drawn with other settings"):
        draw_phantoms(other)


def test_tiny_recipe_holds_every_kind_of_stage():
    stages = yaml.safe_load(TINY.read_text())["stages"]
    kinds = [
        {name: part if isinstance(part, str) else part["mode"] for name, part in s["train"].items()} for s in stages
    ]
    assert stages[0]["objective"] == "contrastive"
    assert set(kinds[1]) == {"image_connector", "volume_connector"}
    assert set(kinds[2].values()) == {"full"}
    assert len(kinds[2]) == 5
    assert kinds[3]["llm"] == "lora"


def test_a_recipe_can_ask_for_texts_to_read_first(tmp_path):
    settings = yaml.safe_load(TINY.read_text()) | {
        "data_root": str(tmp_path),
        "phantoms": {"train": 4, "val": 2, "test": 2, "size": [8, 32, 32], "radiograph": 32, "text_only_patients": 6},
    }
    draw_phantoms(load_recipe(settings))
    root = tmp_path / "phantoms"
    assert len(list(iter_jsonl(root / "text-only-patients.jsonl"))) == 6
    for kind, medium in (("radiograph", "image"), ("ct", "image3d")):
        captions = list(iter_jsonl(root / f"{kind}-captions.jsonl"))
        described = list(iter_jsonl(root / f"{kind}-described.jsonl"))
        assert [row["conversations"][1] for row in described] == [row["conversations"][1] for row in captions]
        assert len({row["conversations"][0]["value"] for row in captions}) == 1
        assert len({row["conversations"][0]["value"] for row in described}) == 2  # a request for each pair of patients
        closed = list(iter_jsonl(root / f"{kind}-closed.jsonl"))
        assert len({row[medium][0] for row in captions}) == len(captions) == 4
        media = root / ("slake" if kind == "radiograph" else "ct-rate")
        assert all((media / row[medium][0]).is_file() for row in (*captions, *closed))
        answers = {turn["value"].lower() for row in closed for turn in row["conversations"] if turn["from"] == "gpt"}
        assert answers <= {"yes", "no", "left", "right"}
