"""A dry run checks every record and prints costs that follow from stated formulas."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.errors import CheckpointError, DataError, RecipeError
from medmvl.files import write_text
from medmvl.training.cost import Hardware, PartCost, memory_bytes
from medmvl.training.dry_run import dry_run
from medmvl.training.recipe_io import dump_recipe, load_recipe
from medmvl.training.run import train
from medmvl.training.run_folder import read_log

from .conftest import CONNECTORS


def quiet():
    return Console(quiet=True)


def test_plan_names_steps_and_the_tokens_that_the_run_will_see(recipe, tmp_path):
    settings = recipe({"train": CONNECTORS, "epochs": 2, "batch_size": 6}, {"max_steps": 4})
    plans = dry_run(settings, console=quiet())
    assert [(plan.name, plan.steps, plan.records) for plan in plans] == [("s0", 6, 36), ("s1", 4, 24)]
    train(settings, tmp_path / "run")
    rows = [row for row in read_log(tmp_path / "run" / "log.jsonl") if row["stage"] == "s0"]
    assert sum(row["tokens"] for row in rows) == pytest.approx(6 * plans[0].tokens)
    assert sum(row["supervised"] for row in rows) == pytest.approx(6 * plans[0].supervised)
    # Stage 2 trains the encoders and the LLM's weights too.
    assert plans[1].flops > plans[0].flops
    assert plans[1].gigabytes > plans[0].gigabytes


def test_flops_and_memory_follow_the_formulas():
    llm = PartCost(parameters=1000, trained=1000, tokens=50, width=8, layers=2, backward=True)
    frozen = PartCost(parameters=1000, trained=0, tokens=50, width=8, layers=2, backward=False)
    passed = PartCost(parameters=1000, trained=0, tokens=50, width=8, layers=2, backward=True)
    assert [part.flops for part in (llm, frozen, passed)] == [6 * 50e3, 2 * 50e3, 4 * 50e3]
    assert memory_bytes([frozen], 1, 0, 0, half=True) == 2000
    assert memory_bytes([frozen], 1, 10, 100, half=False) == 4000 + 12_000
    assert memory_bytes([llm], 2, 0, 0, half=True) == 16_000 + 25 * 8 * 2 * 34
    recomputing = replace(llm, checkpointing=True)
    assert memory_bytes([recomputing], 2, 0, 0, half=True) == 16_000 + 25 * 8 * 2 * 2
    assert recomputing.flops == 8 * 50e3


def test_hardware_lines():
    assert Hardware.parse("2xA100-80GB") == Hardware("A100-80GB", 2, 312, 80)
    assert Hardware.parse("H200").count == 1
    with pytest.raises(RecipeError, match="Did you mean 'H200'"):
        Hardware.parse("4xH20")


def test_hours_shrink_with_more_devices(recipe):
    one, two = (dry_run(recipe({}), hardware=line, console=quiet())[0].hours for line in ("A100-80GB", "2xA100-80GB"))
    assert one == pytest.approx(2 * two)


def test_a_start_that_is_not_there_is_said_before_any_hub_is_asked(recipe):
    settings = recipe({}) | {"model": {"from": "checkpoints/nowhere"}}
    with pytest.raises(CheckpointError, match="checkpoints/nowhere is not a checkpoint folder"):
        dry_run(settings, console=quiet())


def test_records_that_do_not_fit_are_all_named(recipe):
    settings = recipe({})
    settings["model"]["llm"]["max_length"] = 40
    with pytest.raises(DataError) as caught:
        dry_run(settings, console=quiet())
    assert "record(s) cannot be used" in str(caught.value)
    assert "the model takes 40" in str(caught.value)
    assert str(caught.value).count("Sample ") > 1


def test_command_trains_nothing(recipe, tmp_path):
    write_text(tmp_path / "r.yaml", dump_recipe(load_recipe(recipe({}))))
    arguments = ["train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run"), "--dry-run", "--hardware", "T4"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "Model budget" in result.output
    assert "Plan on 1 x T4" in result.output
    assert not (tmp_path / "run").exists()


def test_a_stage_too_big_for_the_device_is_pointed_out(recipe):
    settings = recipe({"batch_size": 16, "precision": "bf16"})
    settings["model"]["llm"]["config"] |= {"hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32}
    lines = io.StringIO()
    plan = dry_run(settings, hardware="A100-80GB", console=Console(file=lines, width=200))[0]
    assert plan.gigabytes > 100
    assert "lower micro_batch_size" in lines.getvalue()
