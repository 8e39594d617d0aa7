"""A matrix: checked, expanded, and its shared stages recognized."""

from __future__ import annotations

import pytest
import yaml

from medmvl.errors import EvaluationError, RecipeError
from medmvl.experiments.compare import expand, load_matrix
from medmvl.experiments.compare.comparison import Plan
from medmvl.training.shipped import recipes_folder

MATRIX = {
    "name": "ranks",
    "recipe": "tiny.yaml",
    "set": {"stages.align.max_steps": 2},
    "axes": {
        "rank": {"r4": {"stages.adapt.train.llm.lora.r": 4}, "r8": {"stages.adapt.train.llm.lora.r": 8}},
        "rate": {"slow": {"stages.adapt.lr": 1e-4}, "fast": {}},
    },
    "seeds": [1, 2],
    "exclude": [{"rank": "r8", "rate": "slow"}],
    "evaluate": {"benchmarks": ["phantom-ct"], "data_root": "data"},
}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        path = tmp_path / "matrix.yaml"
        path.write_text(yaml.safe_dump({**MATRIX, **changes}, sort_keys=False))
        return path

    return write


def runs_of(path):
    return expand(load_matrix(path), path.parent)


def test_the_grid_is_the_product_without_what_is_excluded(write):
    runs = runs_of(write())
    assert [run.name for run in runs] == [
        *("r4_slow-seed1", "r4_slow-seed2", "r4_fast-seed1", "r4_fast-seed2", "r8_fast-seed1", "r8_fast-seed2")
    ]
    first = runs[0].recipe
    assert (first.seed, first.stage("align").max_steps, first.stage("adapt").lr) == (1, 2, 1e-4)
    assert first.stage("adapt").train["llm"].lora.r == 4
    assert runs[-1].recipe.stage("adapt").train["llm"].lora.r == 8


def test_a_stage_is_shared_only_if_all_before_it_is_equal(write):
    # tiny.yaml: contrast, align, instruct, adapt; only the last one differs within a seed
    keys = {run.name: [run.stage_key(index) for index in range(4)] for run in runs_of(write())}
    slow, fast, other, seed = (keys[f"{name}-seed{s}"] for name, s in
                               (("r4_slow", 1), ("r4_fast", 1), ("r8_fast", 1), ("r4_slow", 2)))  # fmt: skip
    assert slow[:3] == fast[:3] == other[:3]
    assert len({slow[3], fast[3], other[3]}) == 3
    assert not set(slow) & set(seed)


def test_neutral_settings_keep_stages_shared(write):
    plain = runs_of(write())[0]
    saved = runs_of(write(set={"stages.align.max_steps": 2, "stages.align.save_every": 7, "run.workers": 1}))[0]
    longer = runs_of(write(set={"stages.align.max_steps": 3}))[0]
    assert plain.stage_key(3) == saved.stage_key(3)
    assert plain.stage_key(1) != longer.stage_key(1)


def test_shared_stages_become_one_job(write, tmp_path):
    path = write()
    matrix = load_matrix(path)
    jobs = Plan(matrix, expand(matrix, path.parent), tmp_path / "out").jobs()
    trained = [job.what for job in jobs if "stage" in job.what]
    assert sum("stage align" in what for what in trained) == 2  # one per seed
    assert sum("stage adapt" in what for what in trained) == 6
    assert sum(job.what.endswith("evaluate") for job in jobs) == 6
    keys = {job.key for job in jobs}
    assert all(set(job.needs) <= keys for job in jobs)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"axis": {}}, RecipeError, "axis: unknown key. Did you mean 'axes'"),
        ({"evaluate": {"benchmark": ["x"], "data_root": "d"}}, RecipeError, "Did you mean 'benchmarks'"),
        ({"evaluate": {"benchmarks": ["phantom-3d"], "data_root": "d"}}, EvaluationError, "Did you mean 'phantom-"),
        ({"exclude": [{"rank": "r9"}]}, RecipeError, "rank has no choice 'r9'. Known: r4, r8"),
        ({"exclude": [{"ranks": "r4"}]}, RecipeError, "Did you mean 'rank'"),
        ({"exclude": [{"rank": "r4"}, {"rank": "r8"}]}, RecipeError, "excludes every combination"),
        ({"reference": "r4+quick"}, RecipeError, "no variant 'r4\\+quick'"),
        ({"recipe": "huge.yaml"}, RecipeError, "neither beside the matrix nor among the shipped recipes"),
        (
            {"exclude": [], "axes": {"a": {"b": {"stages.align.lrr": 1}}}},
            RecipeError,
            "variant 'b' of ranks.*Did you mean 'lr'",
        ),
        ({"exclude": [], "axes": {"a": {"b": {"stages.allign.lr": 1}}}}, RecipeError, "no item 'allign'"),
    ],
)
def test_mistakes_are_named(write, changes, error, message):
    with pytest.raises(error, match=message):
        runs_of(write(**changes))


@pytest.mark.parametrize(
    "path", sorted((recipes_folder().parent / "compare").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_matrix_expands(path):
    runs = runs_of(path)
    assert len(runs) > 1
    assert len({run.stage_key(0) for run in runs}) >= 1
    assert path.read_text().startswith("# Purpose:")
