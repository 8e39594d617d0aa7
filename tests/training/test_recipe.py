"""Recipes: strict, overridable, round-trip, and with errors that lead to the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from medmvl.errors import RecipeError
from medmvl.training.recipe import Recipe
from medmvl.training.recipe.other_names import SAME_SETTING
from medmvl.training.recipe_io import dump_recipe, load_recipe, parse_recipe


def values(**changes):
    return {
        "name": "demo",
        "model": {
            "llm": {"config": {"model_type": "qwen2", "hidden_size": 32}},
            "image": {"encoder": {"name": "siglip"}},
        },
        "data": {"vqa": {"path": "vqa.jsonl"}},
        "stages": [
            {"name": "align", "train": {"image_connector": "full"}, "lr": 1e-3},
            {"name": "tune", "train": {"llm": {"mode": "lora", "lora": {"r": 4}}}, "lr": 1e-4},
        ],
    } | changes


def test_short_and_long_spelling_of_a_part_mean_the_same():
    stage = parse_recipe(values()).stages[0]
    assert stage.train["image_connector"].mode == "full"
    assert parse_recipe(values()).stages[1].train["llm"].lora.r == 4


def test_yaml_round_trip_gives_an_equal_recipe(tmp_path):
    recipe = parse_recipe(values())
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert isinstance(recipe, Recipe)


def test_yaml_traps_are_closed(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(dump_recipe(parse_recipe(values())).replace("lr: 0.001", "lr: 1e-3"))
    assert load_recipe(file).stages[0].lr == 0.001
    file.write_text("name: a\nseed: 1\nseed: 2\n")
    with pytest.raises(RecipeError, match=r"r.yaml, line 3: the key 'seed' stands twice"):
        load_recipe(file)
    file.write_text("name: [a\n")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(file)
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")


def test_overrides_reach_every_depth():
    recipe = load_recipe(
        values(),
        ["seed=7", "stages.0.lr=2e-3", "stages.tune.train.llm.lora.r=8", "run.workers=3", "stages.align.max_steps=5"],
    )
    assert (recipe.seed, recipe.stages[0].lr, recipe.stages[0].max_steps) == (7, 2e-3, 5)
    assert (recipe.stages[1].train["llm"].lora.r, recipe.run.workers) == (8, 3)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "not of the form key.path=value"),
        ("stages.aline.lr=1", "Did you mean 'align'?"),
        ("seeed=1", "seeed: unknown key. Did you mean 'seed'?"),
        ("name.x=1", "goes into 'name', which is a single value"),
    ],
)
def test_a_wrong_override_is_explained(override, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(values(), [override])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.0.learning_rate=1", "stages[0].learning_rate: unknown key."),
        ("stages.0.batchsize=1", "stages[0].batchsize: unknown key. Did you mean 'batch_size'?"),
        ("model.llm.init_form=x", "model.llm.init_form: unknown key. Did you mean 'init_from'?"),
        ("model.image.conector=x", "model.image.conector: unknown key. Did you mean 'connector'?"),
        ("data.vqa.root=x", "data.vqa.root: unknown key."),
        ("stages.1.train.llm.lora.rank=3", "stages[1].train.llm.lora.rank: unknown key."),
        ("stages.0.train.image_conector=full", "unknown part. Did you mean 'image_connector'?"),
        ("stages.0.train.volume_encoder=full", "no part 'volume_encoder'; it has llm, image_encoder"),
        ("stages.0.train.image_connector=half", "'frozen', 'full' or 'lora'"),
        ("stages.0.lr=-1", "stages[0].lr: must be above 0 (got -1)"),
        ("stages.0.batch_size=many", "stages[0].batch_size: must be a whole number (got 'many')"),
        ("stages.0.warmup=-1", "stages[0].warmup: must be at least 0 (got -1)"),
        ("stages.0.epochs=abc", "stages[0].epochs: must be a number (got 'abc')"),
        ("run.progress=7", "run.progress: must be true or false (got 7)"),
        ("stages.0.lr=null", "no learning rate for image_connector"),
        ("stages.0.data=[slake]", "no data set 'slake'"),
        ("stages.0.name=tune", "two stages have this name"),
        ("stages.0.name=model", "cannot be called 'model'"),
        ("stages.0.from=tune", "does not come before it"),
        ("stages.0.train={llm: frozen}", "names no part that trains"),
        ("stages.0={name: a, train: {llm: full}, lr: 1, epochs: 1, max_steps: 2}", "either `epochs` or `max_steps`"),
        ("model.llm.config=null", "either `init_from`"),
        ("stages.0.learning_rate=1", "Here it is called 'lr'"),
        ("stages.0.gradient_accumulation_steps=4", "batch_size / (micro_batch_size × number of devices)"),
        ("stages.0.train.llm={mode: lora, lora: {rank: 3}}", "Here it is called 'r'"),
        ("model.vision_tower=x", "model: {image: {encoder:"),
        ("stages.0.fp16=true", "Write `precision: fp16`"),
        ("run.strategy=zero2\0stages.0.optimizer=adamw_8bit", "adamw_8bit does not go with run.strategy zero2"),
        ("run.strategy=zero1", "run.strategy: must be '"),
        ("name=../up", "name: must match the pattern"),
        ("stages.0.evaluate={data: [vqa]}\0stages.0.data=[vqa]", "both trained on and evaluated on"),
        ("data=null", "data: must hold keys and values (got None)"),
    ],
)
def test_a_fault_is_named_with_its_path(override, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(values(), override.split("\0"))
    assert words in str(caught.value)


def test_all_faults_are_listed_at_once():
    with pytest.raises(RecipeError) as caught:
        load_recipe(values(), ["stages.0.lr=-1", "seeed=3"])
    assert "stages[0].lr" in str(caught.value)
    assert "seeed" in str(caught.value)


def test_mixture_of_a_stage():
    data = {"a": {"path": "a"}, "b": {"path": "b", "weight": 2}, "held": {"path": "c"}}
    stages = [{"name": "s", "train": {"llm": "full"}, "lr": 1, "evaluate": {"data": ["held"]}}]
    recipe = parse_recipe(values(data=data, stages=stages))
    assert recipe.mixture(recipe.stage("s")) == {"a": 1.0, "b": 2.0}
    stages[0]["data"] = {"a": 0.5}
    recipe = parse_recipe(values(data=data, stages=stages))
    assert recipe.mixture(recipe.stage("s")) == {"a": 0.5}


def test_hints_name_keys_that_exist():
    reference = (Path(__file__).parents[2] / "docs" / "recipe-reference.md").read_text(encoding="utf-8")
    for foreign, ours in SAME_SETTING.items():
        assert ours == "--out" or f"`{ours.rpartition('.')[2]}`" in reference, (foreign, ours)
