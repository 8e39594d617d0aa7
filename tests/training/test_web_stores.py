"""Records, media, shards and training from web servers (https://) and Google's storage (gs://), both served on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import medmvl.remote as remote
from imaging.dicom_writing import random_hu, write_series
from medmvl.cli.main import app
from medmvl.errors import DataError
from medmvl.files import iter_jsonl, write_json, write_jsonl
from medmvl.imaging import read_image, read_volume
from medmvl.processing.shards import build_shards
from medmvl.remote import as_root, join, local_copy, local_range
from medmvl.training.build import build_config
from medmvl.training.recipe_io import load_recipe
from medmvl.training.run import train
from miniatures import picture
from processes import killed_before_step
from stores import web_store

from .test_object_store import assert_equal_runs

pytest.importorskip("aiohttp", reason="https:// needs the extra 'objects'")


@pytest.fixture
def web(tmp_path, data_folder, monkeypatch):
    """The data folder at URL/data, a folder that is served."""
    monkeypatch.setenv("MEDMVL_CACHE", str(tmp_path / "copies"))
    folder = tmp_path / "web"
    shutil.copytree(data_folder, folder / "data")
    with web_store(folder) as (url, requests):
        yield url, folder, requests


@pytest.fixture
def google(tmp_path, data_folder, monkeypatch):
    """The data folder as gs://bucket/data of an emulator of Google's storage."""
    pytest.importorskip("gcsfs")
    server = pytest.importorskip("gcp_storage_emulator.server").create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    port = server._api._httpd.server_address[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MEDMVL_CACHE", str(tmp_path / "copies"))
    import fsspec

    remote._facts.cache_clear()
    system = fsspec.core.url_to_fs("gs://bucket")[0]
    system.mkdir("bucket")
    for file in data_folder.iterdir():
        system.pipe_file(f"bucket/data/{file.name}", file.read_bytes())
    yield system
    server.stop()
    type(system).clear_instance_cache()
    remote._facts.cache_clear()


def run_command(*words):
    outcome = CliRunner().invoke(app, [str(word) for word in words])
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    return outcome.output


# --- files -------------------------------------------------------------------------------------------------------------


def test_images_and_folders_of_slices_are_read_from_a_web_server(web):
    url, folder, requests = web
    picture(folder / "raw/a picture 100%25.png")
    write_series(folder / "raw/series one", random_hu())
    root = as_root(f"{url}/raw")
    image = read_image(join(root, "a picture 100%25.png"))
    assert np.array_equal(image.array, read_image(folder / "raw/a picture 100%25.png").array)
    volume = read_volume(join(root, "series one"))
    assert np.array_equal(volume.array, read_volume(folder / "raw/series one").array)
    count = len(requests)
    read_volume(join(root, "series one"))
    assert len(requests) == count  # from the local copy


def test_changed_file_of_the_same_size_is_fetched_again(web):
    url, folder, _ = web
    (folder / "a.csv").write_text("one")
    assert local_copy(as_root(f"{url}/a.csv")).read_text() == "one"
    (folder / "a.csv").write_text("two")
    os.utime(folder / "a.csv", (10**9, 10**9))
    remote._facts.cache_clear()  # a process asks once
    assert local_copy(as_root(f"{url}/a.csv")).read_text() == "two"


def test_server_without_ranges_still_gives_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDMVL_CACHE", str(tmp_path / "copies"))
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "x.bin").write_bytes(bytes(range(100)))
    with web_store(tmp_path / "web", ranges=False) as (url, _):
        assert local_range(as_root(f"{url}/x.bin"), 10, 5, "v").read_bytes() == bytes(range(10, 15))
        with pytest.raises(DataError, match="ends before byte 110"):
            local_range(as_root(f"{url}/x.bin"), 90, 20, "v")


def test_web_page_in_place_of_a_file_is_named(web):
    url, folder, _ = web
    (folder / "login.html").write_text("<html>Please log in</html>")
    with pytest.raises(DataError, match="is a web page, not a file"):
        read_image(as_root(f"{url}/login.html"))


def test_missing_file_and_silent_server_are_named(web):
    url, _, _ = web
    with pytest.raises(DataError, match="does not exist"):
        read_image(as_root(f"{url}/none.png"))
    with pytest.raises(DataError, match="cannot be read"):
        read_image(as_root("http://127.0.0.1:9/none.png"))


def test_writing_to_a_web_server_is_refused_in_one_line(web):
    url, _, _ = web
    with pytest.raises(DataError, match="cannot be written") as caught:
        remote.write_bytes(as_root(f"{url}/new.json"), b"{}")
    assert "\n" not in str(caught.value)


# --- commands ----------------------------------------------------------------------------------------------------------


def test_data_commands_take_urls(web, tmp_path):
    url, _, _ = web
    assert "18 records, no fault" in run_command("data", "check", f"{url}/data/d.jsonl")
    run_command("data", "show", f"{url}/data/d.jsonl", "--out", tmp_path / "sheet.html", "--records", 2)
    run_command("data", "audit", f"{url}/data/d.jsonl")
    run_command("data", "cache", f"{url}/data/d.jsonl", "--out", tmp_path / "cache", "--geometry", "medm-vl-ct")


def test_https_is_verified(tmp_path, data_folder):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", *curve, *names, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "MEDMVL_CACHE": str(tmp_path / "copies")}
    with web_store(data_folder, tls=(cert, key)) as (url, _):
        words = [sys.executable, "-m", "medmvl", "data", "check", f"{url}/d.jsonl"]
        refused = subprocess.run(words, env=environment, capture_output=True, text=True)
        trusted = environment | {"SSL_CERT_FILE": str(cert)}
        accepted = subprocess.run(words, env=trusted, capture_output=True, text=True)
    assert accepted.returncode == 0, accepted.stderr
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr.replace("\n", "")


# --- training, predictions, evaluation ---------------------------------------------------------------------------------


@pytest.fixture
def local(recipe, tmp_path):
    """A recipe, and its finished run from local files."""
    made = recipe({"max_steps": 3, "save_every": 1})
    train(made, tmp_path / "local")
    return made


def train_from(made, root, shards, out):
    """Train, are killed before the third step, and resume with an empty cache of copies."""
    told = made | {"data_root": root, "run": made["run"] | {"volume_cache": shards}}
    with killed_before_step(2) as callbacks:
        train(told, out, callbacks=callbacks)
    shutil.rmtree(os.environ["MEDMVL_CACHE"])
    train(told, out, resume=True)


def test_web_server_trains_the_same_model(local, web, tmp_path):
    url, folder, requests = web
    geometry = build_config(load_recipe(local))[1].volume_processor.geometry
    build_shards(folder / "data/d.jsonl", geometry, folder / "shards", shard_size=2)
    requests.clear()
    train_from(local, f"{url}/data", f"{url}/shards", tmp_path / "remote")
    assert_equal_runs(tmp_path / "local", tmp_path / "remote")
    assert any(path.endswith(".tar") for path in requests)
    assert not any(path.endswith(".npy") for path in requests)  # volumes came from the shards


def test_google_storage_trains_the_same_model(local, google, tmp_path):
    geometry = build_config(load_recipe(local))[1].volume_processor.geometry
    build_shards("gs://bucket/data/d.jsonl", geometry, "gs://bucket/shards", shard_size=2)
    assert google.exists("bucket/shards/manifest.json")
    train_from(local, "gs://bucket/data", "gs://bucket/shards", tmp_path / "remote")
    assert_equal_runs(tmp_path / "local", tmp_path / "remote")
    model = tmp_path / "local" / "model"
    predict(model, "gs://bucket/data/d.jsonl", tmp_path / "remote.jsonl")
    predict(model, google_copy(google, tmp_path) / "d.jsonl", tmp_path / "local.jsonl")
    assert (tmp_path / "remote.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


def google_copy(system, tmp_path):
    """Return a folder with the files of the bucket."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for path in system.ls("bucket/data"):
        (folder / path.rpartition("/")[2]).write_bytes(system.cat_file(path))
    return folder


def predict(model: Path, data, out: Path) -> None:
    run_command("predict", "--model", model, "--data", data, "--out", out, "--max-new-tokens", 4, "--batch-size", 2)


def test_predictions_read_ahead_and_equal_those_of_files(local, web, tmp_path, monkeypatch):
    url, folder, requests = web
    threads = set()
    fetch = remote._download
    monkeypatch.setattr(
        remote, "_download", lambda *given: (threads.add(threading.current_thread().name), fetch(*given))[1]
    )
    model = tmp_path / "local" / "model"
    predict(model, folder / "data/d.jsonl", tmp_path / "local.jsonl")
    predict(model, f"{url}/data/d.jsonl", tmp_path / "remote.jsonl")
    assert (tmp_path / "remote.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    assert any(name.startswith("read-ahead") for name in threads)
    media = [path for path in requests if not path.endswith(("d.jsonl", "report.json"))]
    assert len(media) == len(set(media)) > 2  # each file once


def test_evaluation_takes_urls(local, web, tmp_path):
    url, folder, _ = web
    rows = [
        {
            "id": f"question-{number}",
            "dataset": "slake",
            "task": "vqa",
            "language": "en",
            "image": [f"i{number}.png"],
            "conversations": [{"from": "human", "value": "<image>\nBright?"}, {"from": "gpt", "value": answer}],
        }
        for number, answer in enumerate(("yes", "no", "yes"))
    ]
    write_jsonl(folder / "converted/slake/test.jsonl", rows)
    write_json(folder / "converted/slake/report.json", {"dataset": "slake", "media_root": "../../data"})
    words = ["evaluate", "--model", tmp_path / "local/model", "--benchmark", "slake-vqa", "--max-new-tokens", 4]
    for root, out in ((f"{url}/converted", "remote"), (folder / "converted", "files")):
        run_command(*words, "--data-root", root, "--out", tmp_path / out)
    run_command(*words, "--data-root", f"{url}/converted/slake/test.jsonl", "--out", tmp_path / "file")
    scores = [
        json.loads((tmp_path / out / "results.json").read_text())["benchmarks"] for out in ("remote", "files", "file")
    ]
    assert scores[0] == scores[1] == scores[2]
    assert len(list(iter_jsonl(tmp_path / "remote/predictions/slake-vqa.jsonl"))) == 3


def test_store_without_the_benchmark_is_named(local, web, tmp_path):
    url, _, _ = web
    words = ["evaluate", "--model", tmp_path / "local/model", "--benchmark", "slake-vqa", "--out", tmp_path / "out"]
    outcome = CliRunner().invoke(app, [str(word) for word in [*words, "--data-root", f"{url}/data"]])
    assert "No records of 'slake-vqa' below http://127.0.0.1" in str(outcome.exception)


def test_audit_finds_the_leak_of_a_store(web, tmp_path):
    url, folder, _ = web
    picture(folder / "x/a.png")
    shutil.copy(folder / "x/a.png", folder / "x/b.png")
    for split, name in (("train", "a"), ("test", "b")):
        turns = [{"from": "human", "value": f"<image>\n{split}?"}]
        write_jsonl(folder / f"x/{split}.jsonl", [{"id": split, "image": [f"{name}.png"], "conversations": turns}])
    words = ["data", "audit", f"{url}/x/train.jsonl", f"{url}/x/test.jsonl"]
    outcome = CliRunner().invoke(app, [*words, "--media-root", f"{url}/x"])
    assert outcome.exit_code == 2, (outcome.output, outcome.exception)
    assert "same file" in outcome.output


def test_volume_shards_of_a_web_server(web, tmp_path):
    url, folder, _ = web
    from medmvl.imaging import geometry
    from medmvl.imaging.volume_shards import ShardReader

    small = geometry("medm-vl-ct", size=(4, 16, 16))
    build_shards(folder / "data/d.jsonl", small, folder / "shards", shard_size=2)
    there, here = ShardReader(f"{url}/shards"), ShardReader(folder / "shards")
    assert list(there.fingerprints) == list(here.fingerprints)
    assert all(
        torch.equal(torch.from_numpy(there[key].copy()), torch.from_numpy(here[key].copy()))
        for key in here.fingerprints
    )
