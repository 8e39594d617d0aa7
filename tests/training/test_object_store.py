"""Training from an object store and from shards: equal to local files to the bit, also after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.errors import DataError, RecipeError
from medmvl.imaging.feature_store import FeatureStore, pack_features
from medmvl.models.tower import Tower
from medmvl.processing.read_ahead import ReadAhead
from medmvl.processing.shards import build_shards
from medmvl.training.recipe_io import dump_recipe, load_recipe
from medmvl.training.run import train
from medmvl.training.run_folder import read_log
from processes import killed_before_step
from stores import environment_of, folder_store
from waiting import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path, data_folder):
    """The data folder as s3://bucket/data."""
    with folder_store(tmp_path / "store", tmp_path / "copies") as found:
        shutil.copytree(data_folder, tmp_path / "store/bucket/data")
        yield found


def assert_equal_runs(one: Path, other: Path) -> None:
    logs = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(run / "log.jsonl")]
        for run in (one, other)
    ]
    assert logs[0] == logs[1]
    first, second = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def local(recipe, tmp_path):
    """A recipe, and its finished run from local files."""
    made = recipe({"max_steps": 5, "save_every": 2})
    train(made, tmp_path / "local")
    return made


def from_store(made, **run):
    return made | {"data_root": "s3://bucket/data", "run": made["run"] | run}


@pytest.mark.parametrize("workers", [0, 2])
def test_store_trains_the_same_model(local, tmp_path, store, workers):
    train(from_store(local, workers=workers), tmp_path / "remote")
    assert_equal_runs(tmp_path / "local", tmp_path / "remote")


def test_killed_run_resumes_exactly_with_an_empty_cache(local, tmp_path, store):
    with killed_before_step(3) as callbacks:
        train(from_store(local), tmp_path / "remote", callbacks=callbacks)
    shutil.rmtree(tmp_path / "copies")
    train(from_store(local), tmp_path / "remote", resume=True)
    assert_equal_runs(tmp_path / "local", tmp_path / "remote")


@pytest.mark.parametrize("place", ["folder", "s3://bucket/shards"])
def test_killed_run_from_shards_resumes_exactly(local, tmp_path, store, place):
    shards = str(tmp_path / "shards") if place == "folder" else place
    from medmvl.training.build import build_config

    geometry = build_config(load_recipe(local))[1].volume_processor.geometry
    build_shards("s3://bucket/data/d.jsonl", geometry, shards, shard_size=2)
    store.reads.clear()
    made = from_store(local, volume_cache=shards)
    with killed_before_step(3) as callbacks:
        train(made, tmp_path / "remote", callbacks=callbacks)
    train(made, tmp_path / "remote", resume=True)
    assert_equal_runs(tmp_path / "local", tmp_path / "remote")
    assert not any(path.endswith(".npy") for path in store.reads)  # volumes came from the shards


def test_stored_features_of_a_store_train_the_same_model(recipe, tmp_path, store):
    frozen = {"train": {"llm": "full", "image_connector": "full", "volume_connector": "full"}, "feature_cache": True}
    made = recipe(frozen | {"max_steps": 2})
    train(made, tmp_path / "local")
    train(from_store(made), tmp_path / "remote")
    assert_equal_runs(tmp_path / "local", tmp_path / "remote")


def test_packed_features_replace_the_encoder(recipe, tmp_path, store, monkeypatch):
    frozen = {"train": {"llm": "full", "image_connector": "full", "volume_connector": "full"}, "feature_cache": True}
    made = from_store(recipe(frozen | {"max_steps": 4, "save_every": 2}))
    train(made, tmp_path / "one")
    outcome = CliRunner().invoke(
        app, ["data", "pack", str(tmp_path / "one" / "features"), "--out", "s3://bucket/features"]
    )
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    monkeypatch.setattr(Tower, "encode_pooled", lambda *_: pytest.fail("the encoder ran"))
    store.reads.clear()
    shutil.rmtree(tmp_path / "copies")
    packed = from_store(made, feature_shards="s3://bucket/features")
    with killed_before_step(3) as callbacks:
        train(packed, tmp_path / "two", callbacks=callbacks)
    train(packed, tmp_path / "two", resume=True)
    assert_equal_runs(tmp_path / "one", tmp_path / "two")
    assert not any(path.endswith((".npy", ".png")) for path in store.reads)


def test_packed_features_of_another_encoder_are_refused(tmp_path):
    FeatureStore(tmp_path / "f", "encoder", "size").put("a", torch.ones(2))
    assert pack_features(tmp_path / "f", tmp_path / "shards") == 1
    assert torch.equal(FeatureStore(tmp_path / "g", "encoder", "size", tmp_path / "shards").get("a"), torch.ones(2))
    with pytest.raises(DataError, match="Use other shards"):
        FeatureStore(tmp_path / "g", "encoder", "other", tmp_path / "shards")


def test_phantoms_need_a_folder(recipe, tmp_path, store):
    made = recipe({"max_steps": 1}, data_root="s3://bucket/data", phantoms={"train": 2})
    with pytest.raises(RecipeError, match="must then be a folder and not a URL"):
        train(made, tmp_path / "run")


def test_read_ahead_keeps_the_order_and_looks_ahead():
    fetched = []
    batches = [[1, 2], [3], [4, 5], [6]]
    seen = []
    for batch in ReadAhead(batches, fetched.append, ahead=2):
        seen.append(list(batch))
        ahead = {number for batch in batches[: len(seen) + 2] for number in batch}
        wait_for(lambda ahead=ahead: set(fetched) >= ahead, what="the next batches are fetched")
    assert seen == batches
    assert sorted(fetched) == [1, 2, 3, 4, 5, 6]


def test_read_ahead_leaves_errors_to_the_reader():
    def fails(number):
        raise OSError

    assert list(ReadAhead([[1], [2]], fails, ahead=1)) == [[1], [2]]


# --- a real S3 server -------------------------------------------------------------------------------------------------


@pytest.fixture
def moto(monkeypatch, tmp_path):
    """An S3 server on this machine; its variables are set."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    for name, value in environment_of(server.get_host_and_port()[1]).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MEDMVL_CACHE", str(tmp_path / "copies"))
    yield
    server.stop()


@pytest.mark.slow
def test_killed_process_resumes_exactly_from_shards_on_s3(local, data_folder, tmp_path, moto):
    import fsspec

    from medmvl.training.build import build_config

    system, _ = fsspec.core.url_to_fs("s3://bucket")
    system.mkdir("bucket")
    system.put(str(data_folder), "bucket/data", recursive=True)
    geometry = build_config(load_recipe(local))[1].volume_processor.geometry
    build_shards("s3://bucket/data/d.jsonl", geometry, "s3://bucket/shards", shard_size=2)
    made = from_store(local, volume_cache="s3://bucket/shards", workers=1)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe(made)))
    command = [
        sys.executable,
        "-m",
        "medmvl",
        "train",
        str(tmp_path / "recipe.yaml"),
        "--out",
        str(tmp_path / "remote"),
    ]
    log = tmp_path / "remote" / "log.jsonl"
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, start_new_session=True
    )
    wait_for(
        lambda: process.poll() is not None or (log.exists() and log.read_text().count("\n") >= 2), what="two steps"
    )
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    shutil.rmtree(tmp_path / "copies")
    train(made, tmp_path / "remote", resume=True)
    assert_equal_runs(tmp_path / "local", tmp_path / "remote")
