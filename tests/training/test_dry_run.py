"""A dry run checks every record and prints costs that follow from stated formulas."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from PIL import Image as PILImage
from rich.console import Console
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.data.formats import write_records
from medmvl.errors import CheckpointError, DataError, RecipeError
from medmvl.files import write_text
from medmvl.training.context import StageContext
from medmvl.training.cost import Hardware, PartCost, memory_bytes
from medmvl.training.dry_run import dry_run
from medmvl.training.leaks import leak_warnings
from medmvl.training.media import read_media
from medmvl.training.recipe_io import dump_recipe, load_recipe
from medmvl.training.run import train
from medmvl.training.run_folder import RunFolder, read_log

from .conftest import CONNECTORS, turns


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


def test_missing_start_is_reported_before_hub_access(recipe):
    settings = recipe({}) | {"model": {"from": "checkpoints/nowhere"}}
    with pytest.raises(CheckpointError, match="checkpoints/nowhere is not a checkpoint folder"):
        dry_run(settings, console=quiet())


def test_records_that_do_not_fit_are_all_named(recipe):
    settings = recipe({})
    settings["model"]["llm"]["max_length"] = 40
    with pytest.raises(DataError) as caught:
        dry_run(settings, console=quiet())
    assert "records cannot be used" in str(caught.value)
    assert "the model takes 40" in str(caught.value)
    assert str(caught.value).count("data set 'd', d.jsonl, line ") > 1


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


# --- held-out data ----------------------------------------------------------------------------------------------------


def with_held_out(recipe, folder, rows):
    """Return a recipe of one evaluated stage: training on two records of patients A and B, held out are `rows`."""
    for patient in "ABC":
        PILImage.new("L", (20, 20), 90).save(folder / f"{patient}.png")
    train = [record(f"t{patient}", patient) for patient in "AB"]
    write_records(folder / "train.jsonl", train)
    write_records(folder / "held.jsonl", rows)
    data = {"seen": {"path": "train.jsonl"}, "held": {"path": "held.jsonl"}}
    stage = {"data": ["seen"], "batch_size": 2, "max_steps": 1, "evaluate": {"data": ["held"], "generate": 1}}
    return recipe(stage, data_root=str(folder), data=data)


def record(identifier, name, **changes):
    """Return a record about the image of that name, which is the patient's name too."""
    facts = {"id": identifier, "patient": name, "image": [f"{name}.png"]}
    return facts | {"conversations": turns("<image>\nBright?", "yes")} | changes


def test_faulty_held_out_records_are_named(recipe, tmp_path):
    unanswered = record("silent", "A") | {"conversations": turns("<image>\nBright?", "yes")[:1]}
    rows = [record("lost", "Z"), record("fine", "A"), unanswered]
    with pytest.raises(DataError) as caught:
        dry_run(with_held_out(recipe, tmp_path, rows), console=quiet())
    message = str(caught.value)
    assert "2 held-out records of stage 's0' cannot be used" in message
    assert "'lost'" in message
    assert "'silent': it has no answer" in message
    assert "'fine'" not in message


def test_dry_run_counts_patients_shared_with_held_out_data(recipe, tmp_path):
    lines = io.StringIO()
    rows = [record("a1", "A"), record("a2", "A"), record("b", "B")]
    dry_run(with_held_out(recipe, tmp_path, rows), console=Console(file=lines, width=200))
    assert (
        "LEAK: Stage 's0': 2 patients of the held-out data 'held' are in the training data 'seen'" in lines.getvalue()
    )


def test_a_shared_image_without_a_patient_is_a_leak(recipe, tmp_path):
    lines = io.StringIO()
    rows = [record("a", "A", patient=None)]
    dry_run(with_held_out(recipe, tmp_path, rows), console=Console(file=lines, width=200))
    assert "1 image or volume of the held-out data" in lines.getvalue()


def test_training_warns_of_a_leak_and_names_the_count(recipe, tmp_path, caplog):
    train(with_held_out(recipe, tmp_path, [record("b", "B")]), tmp_path / "run")
    assert "1 patient of the held-out data 'held' is in the training data 'seen'" in caplog.text


def test_leak_of_an_earlier_stage_is_found(recipe, tmp_path, caplog):
    settings = with_held_out(recipe, tmp_path, [record("b", "B")])
    (only,) = settings["stages"]
    write_records(tmp_path / "other.jsonl", [record("d", "A", patient="D")])
    settings["data"]["other"] = {"path": "other.jsonl"}
    first = {key: value for key, value in only.items() if key != "evaluate"}
    settings["stages"] = [first, only | {"name": "s1", "data": ["other"]}]
    lines = io.StringIO()
    dry_run(settings, console=Console(file=lines, width=200))
    assert "Stage 's1': 1 patient of the held-out data 'held' is in the training data 'seen'" in lines.getvalue()
    settings["stages"] = [first, only | {"name": "s1", "data": ["other"], "from": str(tmp_path)}]
    assert (
        list(leak_warnings(StageContext(load_recipe(settings), load_recipe(settings).stages[1], RunFolder(tmp_path))))
        == []
    )


# --- images and volumes -----------------------------------------------------------------------------------------------


def test_unreadable_held_out_image_is_named_with_the_records_that_use_it(recipe, tmp_path):
    settings = with_held_out(recipe, tmp_path, [record("c1", "C"), record("c2", "C"), record("a", "A", patient="D")])
    (tmp_path / "C.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    lines = io.StringIO()
    with pytest.raises(DataError) as caught:
        dry_run(settings, console=Console(file=lines, width=200))
    message = str(caught.value)
    assert message.startswith("1 image or volume cannot be read:")
    assert "data set 'held' (held.jsonl), 2 records ('c1', 'c2'): C.png" in message
    assert "Images and volumes: 3 of 3 read." in lines.getvalue()


def test_image_that_no_evaluation_uses_is_not_read(recipe, tmp_path):
    settings = with_held_out(recipe, tmp_path, [record("a", "A", patient="D"), record("c", "C")])
    (tmp_path / "C.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    settings["stages"][0]["evaluate"] |= {"samples": 1}
    dry_run(settings, console=quiet())


def test_without_time_one_file_of_each_data_set_is_read_and_that_is_said(recipe, tmp_path):
    settings = load_recipe(with_held_out(recipe, tmp_path, [record("c", "C")]))
    contexts = [StageContext(settings, stage, RunFolder(tmp_path / "run")) for stage in settings.stages]
    report = read_media(contexts, seconds=0)
    assert (report.read, report.files, report.faults) == (2, 3, [])
    assert "2 of 3 read (a random sample" in report.describe()


def test_command_can_leave_images_and_volumes_unread(recipe, tmp_path):
    settings = with_held_out(recipe, tmp_path, [record("c", "C")])
    (tmp_path / "C.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    write_text(tmp_path / "r.yaml", dump_recipe(load_recipe(settings)))
    arguments = ["train", str(tmp_path / "r.yaml"), "--dry-run"]
    assert CliRunner().invoke(app, [*arguments, "--no-read"]).exit_code == 0
    assert isinstance(CliRunner().invoke(app, arguments).exception, DataError)


@pytest.mark.parametrize("place", ["held", "seen"])
def test_unreadable_image_in_a_run_is_named_with_data_set_and_record(recipe, tmp_path, place):
    settings = with_held_out(recipe, tmp_path, [record("c", "C")])
    if place == "seen":
        write_records(tmp_path / "train.jsonl", [record("c", "C")])
    (tmp_path / "C.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    file = {"held": "held.jsonl", "seen": "train.jsonl"}[place]
    with pytest.raises(DataError, match=f"data set '{place}', {file}, line 1, record 'c': .*C.png"):
        train(settings, tmp_path / "run")
