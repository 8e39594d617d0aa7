"""Every recipe that is shipped is valid, says what it is for, and passes a dry run with tiny parts on tiny data."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
from rich.console import Console

from medmvl.data.formats import read_records, write_records
from medmvl.training.dry_run import dry_run
from medmvl.training.recipe import Recipe
from medmvl.training.recipe_io import dump_recipe, load_recipe, parse_recipe, read_yaml
from medmvl.training.run import train
from medmvl.training.shipped import shipped_recipes

from .conftest import MODEL

RECIPES = shipped_recipes()
NAMES = [path.parent.name if path.stem == "recipe" else path.stem for path in RECIPES]
HEADER = ("Purpose", "Data", "Hardware", "Launch", "Expected")
TINY_ENCODERS = {
    "siglip": MODEL["image"]["encoder"],
    "resnet": MODEL["image"]["encoder"],
    "m3dclip": MODEL["volume"]["encoder"],
    "medmclip": MODEL["volume"]["encoder"],
    "vit3d": MODEL["volume"]["encoder"],
}
TINY_TEXT = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
TINY_TEXT |= {"num_hidden_layers": 1}


@pytest.fixture(params=zip(RECIPES, NAMES, strict=True), ids=NAMES)
def file(request):
    return request.param[0]


@pytest.fixture
def name(request):
    return request.node.callspec.params["file"][1]


def test_the_header_says_purpose_data_hardware_launch_and_expectation(file, name):
    head = file.read_text().partition("\nname:")[0]
    found = re.findall(r"^# (\w+):", head, flags=re.MULTILINE)
    assert [word for word in found if word in HEADER] == list(HEADER)
    assert f"recipes/{name}" in head


def test_the_recipe_is_valid_and_survives_yaml(file, name, tmp_path):
    recipe = load_recipe(file)
    assert recipe.name == name
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.fixture(scope="session")
def checkpoint(data_folder, tmp_path_factory):
    """A checkpoint with both towers for recipes that start from one."""
    stage = {"name": "s", "train": {"image_connector": "full"}, "lr": 1e-3, "max_steps": 1, "batch_size": 2}
    settings = {"name": "tiny", "data_root": str(data_folder), "model": copy.deepcopy(MODEL), "stages": [stage]}
    settings |= {"data": {"d": {"path": "d.jsonl"}}, "run": {"progress": False, "device": "cpu"}}
    return train(settings, tmp_path_factory.mktemp("checkpoint") / "run")


def shrunk(recipe: Recipe, folder: Path, rows: list[dict], checkpoint: Path) -> dict:
    """Return the recipe with its parts replaced by tiny random ones and its data by tiny records."""
    settings = recipe.to_dict() | {"data_root": str(folder)}
    settings.pop("phantoms", None)
    model = settings["model"]
    if "from" in model:
        model["from"] = str(checkpoint)
        wanted = {"image", "volume"}
    else:
        if "llm" in model:
            model["llm"] = MODEL["llm"] | {"max_length": model["llm"].get("max_length", 2048)}
        wanted = {name for name in ("image", "volume") if name in model}
        for tower in wanted:
            shrink_tower(model[tower])
    # Pretraining templates know one question about one picture.
    only_media = [row for row in rows if media(row) and media(row) <= wanted and len(row["conversations"]) == 2]
    write_records(folder / f"{recipe.name}.jsonl", only_media)
    settings["data"] = {name: {"path": f"{recipe.name}.jsonl"} for name in settings["data"]}
    for stage in (stage for stage in settings["stages"] if stage.get("objective") == "contrastive"):
        stage["contrastive"]["text"] = {"config": TINY_TEXT}
        modality = "image" if "image_encoder" in stage["train"] else "volume"
        pairs = [row for row in only_media if media(row) == {modality}]
        write_records(folder / f"{recipe.name}-{stage['name']}.jsonl", pairs)
        settings["data"]["pairs"] = {"path": f"{recipe.name}-{stage['name']}.jsonl"}
        stage["data"] = ["pairs"]
    return settings


def media(row: dict) -> set[str]:
    return {tower for key, tower in (("image", "image"), ("image3d", "volume")) if key in row}


def shrink_tower(tower: dict) -> None:
    encoder = tower["encoder"]
    if encoder["name"] == "slicewise":
        tower["encoder"] = encoder | {"encoder": TINY_ENCODERS["siglip"], "slices": 4}
    else:
        tower["encoder"] = TINY_ENCODERS.get(encoder["name"], encoder)
    connector = tower.get("connector")
    if isinstance(connector, dict) and isinstance(connector["pooling"], dict) and "factor" in connector["pooling"]:
        connector["pooling"] = {"name": "spatial", "factor": 1}


def test_the_recipe_passes_a_dry_run_with_tiny_parts(file, data_folder, checkpoint):
    rows = list(read_records(data_folder / "d.jsonl"))
    recipe = load_recipe(file)
    settings = shrunk(recipe, data_folder, rows, checkpoint)
    plans = dry_run(parse_recipe(settings), hardware="2xA100-80GB", console=Console(quiet=True))
    assert [plan.name for plan in plans] == [stage.name for stage in recipe.stages]
    assert all(plan.supervised > 0 for plan in plans)


def test_nothing_but_yaml_lies_among_the_recipes(file):
    assert isinstance(read_yaml(file), dict)
