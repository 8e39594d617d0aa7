"""Prepared volumes in tar shards: locally, in an object store, by several processes, resumed, and read by others."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import medmvl.imaging.volume_shards as volume_shards
import medmvl.processing.shards as shards_module
from imaging.dicom_writing import random_hu
from medmvl.cli.main import app
from medmvl.data.dataset import SampleDataset
from medmvl.data.roots import MediaRoots
from medmvl.errors import DataError, GeometryError
from medmvl.imaging import geometry, read_volume
from medmvl.imaging.cache import StaleCacheError
from medmvl.imaging.volume_shards import ShardReader
from medmvl.processing.cache import build_cache
from medmvl.processing.shards import build_shards
from medmvl.processing.volume3d import VolumeProcessor
from medmvl.remote import LIMIT_VARIABLE, as_root
from stores import folder_store

from .test_cache import GEOMETRY, scans  # noqa: F401  (a fixture)


@pytest.fixture
def store(tmp_path):
    with folder_store(tmp_path / "store", tmp_path / "local") as found:
        (tmp_path / "store" / "bucket").mkdir(parents=True)
        yield found


@pytest.fixture(autouse=True)
def one_salt(monkeypatch):
    """The same salt in all sets of shards, which are then comparable byte for byte."""
    monkeypatch.setattr(volume_shards.secrets, "token_hex", lambda count: "5a17")


def test_keys_are_salted(scans, tmp_path, monkeypatch):  # noqa: F811
    build_shards(scans, GEOMETRY, tmp_path / "a")
    monkeypatch.setattr(volume_shards.secrets, "token_hex", lambda count: "other")
    build_shards(scans, GEOMETRY, tmp_path / "b")
    assert not set(ShardReader(tmp_path / "a").fingerprints) & set(ShardReader(tmp_path / "b").fingerprints)


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold equal files, apart from locks."""
    first, second = ({f.name: f.read_bytes() for f in folder.iterdir() if f.name != ".lock"} for folder in (one, other))
    return first == second


def test_shards_hold_what_the_geometry_gives(scans, tmp_path):  # noqa: F811
    report = build_shards(scans, GEOMETRY, tmp_path / "shards", shard_size=3)
    assert (report.prepared, report.kept, report.failures) == (7, 0, [])
    reader = ShardReader(tmp_path / "shards", GEOMETRY, scans.parent)
    assert len(reader) == 7
    for sample in SampleDataset(scans):
        (path,) = sample.volumes
        assert torch.equal(reader.tensor(path), GEOMETRY(read_volume(path)))
    assert reader.tensor(tmp_path / "elsewhere.npy") is None


def test_tar_files_are_samples_of_webdataset(scans, tmp_path):  # noqa: F811
    build_shards(scans, GEOMETRY, tmp_path / "shards", shard_size=3)
    assert sorted(path.name for path in (tmp_path / "shards").glob("*.tar")) == [f"shard-0000{n}.tar" for n in range(3)]
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    with tarfile.open(tmp_path / "shards" / "shard-00000.tar") as tar:
        names = tar.getnames()
        assert len(names) == 6
        assert [name.partition(".") for name in names] == [
            (row["name"], ".", end) for row in index["shards"][0]["rows"] for end in ("npy", "json")
        ]
        for row in index["shards"][0]["rows"]:
            member = tar.getmember(f"{row['name']}.npy")
            assert (member.offset_data, member.size) == (row["offset"], row["bytes"])
            assert np.load(io.BytesIO(tar.extractfile(member).read())).shape == (1, 4, 16, 16)


def test_no_patient_in_the_shards(scans, tmp_path):  # noqa: F811
    build_shards(scans, GEOMETRY, tmp_path / "shards")
    for file in (tmp_path / "shards").iterdir():
        content = file.read_bytes()
        assert not any(word in content for word in (b"Mueller", b"Hans", b"scan0", b"patient-"))


def test_worker_processes_write_equal_shards(scans, tmp_path):  # noqa: F811
    build_shards(scans, GEOMETRY, tmp_path / "one", shard_size=2)
    build_shards(scans, GEOMETRY, tmp_path / "many", shard_size=2, workers=2)
    assert same(tmp_path / "one", tmp_path / "many")


@pytest.mark.slow
def test_ray_writes_equal_shards(scans, tmp_path):  # noqa: F811
    pytest.importorskip("ray")
    build_shards(scans, GEOMETRY, tmp_path / "one", shard_size=2)
    build_shards(scans, GEOMETRY, tmp_path / "ray", shard_size=2, workers=2, engine="ray")
    assert same(tmp_path / "one", tmp_path / "ray")


def test_interrupted_job_resumes_to_equal_shards(scans, tmp_path, monkeypatch):  # noqa: F811
    build_shards(scans, GEOMETRY, tmp_path / "whole", shard_size=2)
    write, done = shards_module.write_volume_shard, []

    def dies(target, number, rows):
        if number == 2:
            raise KeyboardInterrupt
        done.append(number)
        return write(target, number, rows)

    monkeypatch.setattr(shards_module, "write_volume_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        build_shards(scans, GEOMETRY, tmp_path / "part", shard_size=2)
    with pytest.raises(DataError, match="not a finished set of shards"):
        ShardReader(tmp_path / "part")
    monkeypatch.setattr(shards_module, "write_volume_shard", write)
    report = build_shards(scans, GEOMETRY, tmp_path / "part", shard_size=2)
    assert (report.prepared, report.kept) == (3, 4)
    assert same(tmp_path / "whole", tmp_path / "part")


def test_changed_source_renews_its_shard_only(scans, tmp_path):  # noqa: F811
    build_shards(scans, GEOMETRY, tmp_path / "shards", shard_size=2)
    np.save(scans.parent / "scan2.npy", random_hu(seed=77))
    with pytest.raises(StaleCacheError):
        ShardReader(tmp_path / "shards", GEOMETRY, scans.parent).tensor(scans.parent / "scan2.npy")
    report = build_shards(scans, GEOMETRY, tmp_path / "shards", shard_size=2)
    assert (report.prepared, report.kept) == (2, 5)
    assert ShardReader(tmp_path / "shards", GEOMETRY, scans.parent).tensor(scans.parent / "scan2.npy") is not None


def test_failures_are_named_and_tried_again(scans, tmp_path):  # noqa: F811
    (scans.parent / "scan3.npy").write_bytes(b"nothing")
    report = build_shards(scans, GEOMETRY, tmp_path / "shards", shard_size=2)
    assert [number for number, _ in report.failures] == [3]
    assert "scan3" not in json.dumps(report.failures)
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["count"] == 6
    np.save(scans.parent / "scan3.npy", random_hu(seed=3))
    assert build_shards(scans, GEOMETRY, tmp_path / "shards", shard_size=2).prepared == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda shard: shard.update(file="../../other/shard-00000.tar"),
        lambda shard: shard.update(bytes="many"),
        lambda shard: shard["rows"][0].update(bytes=10**15),
        lambda shard: shard["rows"][0].update(offset=-512),
        lambda shard: shard["rows"][0].pop("size"),
        lambda shard: shard.update(rows={"name": 1}),
    ],
)
def test_index_that_leads_elsewhere_is_refused(scans, tmp_path, change):  # noqa: F811
    build_shards(scans, GEOMETRY, tmp_path / "shards")
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    change(index["shards"][0])
    (tmp_path / "shards" / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="damaged"):
        ShardReader(tmp_path / "shards")


def test_manifest_without_a_geometry_is_refused(scans, tmp_path):  # noqa: F811
    build_shards(scans, GEOMETRY, tmp_path / "shards")
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps({**manifest, "geometry": None}))
    with pytest.raises(GeometryError, match="describes no geometry"):
        ShardReader(tmp_path / "shards")


def test_other_geometry_is_refused(scans, tmp_path):  # noqa: F811
    build_shards(scans, GEOMETRY, tmp_path / "shards")
    other = geometry("medm-vl-ct", size=(4, 8, 8))
    with pytest.raises(GeometryError):
        ShardReader(tmp_path / "shards", other)
    with pytest.raises(GeometryError):
        build_shards(scans, other, tmp_path / "shards")


def test_damaged_shards_are_named(scans, tmp_path):  # noqa: F811
    build_shards(scans, GEOMETRY, tmp_path / "shards")
    tar = tmp_path / "shards" / "shard-00000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    reader = ShardReader(tmp_path / "shards", GEOMETRY, scans.parent)
    with pytest.raises(DataError, match="cut off"):
        [reader[key] for key in reader.fingerprints]
    (tmp_path / "shards" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not a finished set"):
        ShardReader(tmp_path / "shards")


@pytest.mark.parametrize("limit", ["1", "0.000001"], ids=["whole shards", "single volumes"])
def test_store_gives_what_the_folder_gives(scans, tmp_path, store, monkeypatch, limit):  # noqa: F811
    monkeypatch.setenv(LIMIT_VARIABLE, limit)
    build_shards(scans, GEOMETRY, "s3://bucket/shards", shard_size=3)
    build_shards(scans, GEOMETRY, tmp_path / "local-shards", shard_size=3)
    assert same(tmp_path / "store/bucket/shards", tmp_path / "local-shards")
    reader = ShardReader("s3://bucket/shards", GEOMETRY, scans.parent)
    store.reads.clear()
    for sample in [*SampleDataset(scans)] * 2:
        assert torch.equal(reader.tensor(sample.volumes[0]), GEOMETRY(read_volume(sample.volumes[0])))
    assert len(store.reads) == (3 if limit == "1" else 7)


def test_volumes_of_a_store_have_the_keys_of_a_folder(scans, tmp_path, store):  # noqa: F811
    """Shards made from local files serve records whose volume root is a URL, and the reverse."""
    import shutil

    shutil.copytree(scans.parent, tmp_path / "store/bucket/raw")
    remote = MediaRoots(volume="s3://bucket/raw")
    build_shards(scans, GEOMETRY, tmp_path / "a", shard_size=3)
    build_shards(scans, GEOMETRY, tmp_path / "b", shard_size=3, roots=remote)
    assert list(ShardReader(tmp_path / "a").fingerprints) == list(ShardReader(tmp_path / "b").fingerprints)
    build_cache(scans, GEOMETRY, tmp_path / "c", roots=remote)
    store.reads.clear()
    processor = VolumeProcessor(GEOMETRY)
    processor.use_cache(tmp_path / "a", as_root("s3://bucket/raw"))
    for sample in SampleDataset(scans, remote):
        local = GEOMETRY(read_volume(scans.parent / sample.volumes[0].rpartition("/")[2]))
        assert torch.equal(processor.prepare(sample.volumes[0]), local)
    assert store.reads == []


def test_command_writes_shards_to_a_store(scans, tmp_path, store):  # noqa: F811
    words = ["data", "cache", scans, "--out", "s3://bucket/shards", "--geometry", "medm-vl-ct"]
    outcome = CliRunner().invoke(app, [str(word) for word in [*words, "--shards"]])
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    assert "s3://bucket/shards: 7 volumes prepared" in outcome.output
    refused = CliRunner().invoke(app, [str(word) for word in words])
    assert "may be a URL only with --shards" in str(refused.exception)
