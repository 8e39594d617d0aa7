"""The volume cache: the same whoever makes it, resumable, never stale, silent about patients."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import dcmread
from typer.testing import CliRunner

from imaging.dicom_writing import random_hu, write_series
from medmvl.cli.main import app
from medmvl.data.read_options import ReadOptions
from medmvl.data.roots import MediaRoots
from medmvl.errors import BusyError, GeometryError, ImagingError
from medmvl.imaging import geometry, read_volume
from medmvl.imaging.cache import CacheReader, CacheWriter, Fingerprint, StaleCacheError, key_of
from medmvl.processing import VolumeProcessor, cache
from medmvl.processing.cache import FAILURES, build_cache

GEOMETRY = geometry("medm-vl-ct", size=(4, 16, 16))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A data file that names seven volumes, one of them twice and one a DICOM folder."""
    root = tmp_path / "Mueller_Hans"
    root.mkdir()
    names = []
    for index in range(6):
        np.save(root / f"scan{index}.npy", random_hu(seed=index))
        names.append(f"scan{index}.npy")
    write_series(root / "series", random_hu(seed=9))
    names += ["series", "scan0.npy"]
    records = [
        {
            "id": f"patient-{i}",
            "conversations": [{"from": "human", "value": "<image3d>\nWhat?"}, {"from": "gpt", "value": "Nothing."}],
            "image3d": [name],
        }
        for i, name in enumerate(names)
    ]
    (root / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return root / "data.jsonl"


def contents(folder: Path) -> dict[str, Any]:
    """Files of a cache; without its random salt and the keys, which depend on it."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for name in [name for name in found if name.startswith("shard") and name.endswith(".json")]:
        found[name] = [{key: row[key] for key in row if key != "key"} for row in json.loads(found[name])]
    found["manifest.json"] = {key: value for key, value in json.loads(found["manifest.json"]).items() if key != "salt"}
    return found


def test_rows_are_what_the_geometry_gives(scans: Path, tmp_path: Path) -> None:
    report = build_cache(scans, GEOMETRY, tmp_path / "cache")
    assert (report.prepared, report.kept, report.failures) == (7, 0, [])
    reader = CacheReader(tmp_path / "cache", GEOMETRY, scans.parent)
    assert len(reader) == 7
    for name in ("scan3.npy", "series"):
        cached = reader.tensor(scans.parent / name)
        assert cached is not None
        assert torch.equal(cached, GEOMETRY(read_volume(scans.parent / name)))
    assert reader.tensor(scans.parent / "data.jsonl") is None


def test_second_run_keeps_everything(scans: Path, tmp_path: Path) -> None:
    build_cache(scans, GEOMETRY, tmp_path / "cache")
    before = contents(tmp_path / "cache")
    report = build_cache(scans, GEOMETRY, tmp_path / "cache")
    assert (report.prepared, report.kept) == (0, 7)
    assert contents(tmp_path / "cache") == before


@pytest.mark.parametrize("killed_after", [1, 3, 4, 6])
def test_killed_and_resumed_equals_uninterrupted(
    killed_after: int, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_cache(scans, GEOMETRY, tmp_path / "whole", shard_size=3)
    original = cache._with_processes

    def killed(*arguments: Any) -> Iterator[cache.Outcome]:
        for count, outcome in enumerate(original(*arguments)):
            if count == killed_after:
                raise KeyboardInterrupt
            yield outcome

    monkeypatch.setattr(cache, "_with_processes", killed)
    with pytest.raises(KeyboardInterrupt):
        build_cache(scans, GEOMETRY, tmp_path / "resumed", shard_size=3)
    monkeypatch.undo()
    report = build_cache(scans, GEOMETRY, tmp_path / "resumed", shard_size=3)
    assert report.kept == killed_after
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_a_shard_without_its_list_is_written_again(scans: Path, tmp_path: Path) -> None:
    """What a SIGKILL between the two files of a shard leaves behind."""
    build_cache(scans, GEOMETRY, tmp_path / "whole", shard_size=3)
    build_cache(scans, GEOMETRY, tmp_path / "killed", shard_size=3)
    (tmp_path / "killed" / "shard-00002.json").unlink()
    report = build_cache(scans, GEOMETRY, tmp_path / "killed", shard_size=3)
    assert (report.prepared, report.kept) == (1, 6)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_rows_behind_the_last_key_are_written_again(scans: Path, tmp_path: Path) -> None:
    """What a SIGKILL leaves behind that comes between the two files of a shard which a second run fills up."""
    build_cache(scans, GEOMETRY, tmp_path / "whole", shard_size=5)
    build_cache(scans, GEOMETRY, tmp_path / "killed", shard_size=5)
    listing = tmp_path / "killed" / "shard-00001.json"
    listing.write_text(json.dumps(json.loads(listing.read_text())[:1]) + "\n")
    (tmp_path / "killed" / ".999999999.0123abcd.shard-00001.npy").write_bytes(b"half of it")
    report = build_cache(scans, GEOMETRY, tmp_path / "killed", shard_size=5)
    assert (report.prepared, report.kept) == (1, 6)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_killed_by_the_system_and_resumed_equals_uninterrupted(scans: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image3d>"}, {"from": "gpt", "value": "."}]
    with scans.open("a") as handle:
        for index in range(40):
            np.save(scans.parent / f"more{index}.npy", random_hu((40, 64, 64), seed=index))
            row = {"id": f"more{index}", "image3d": [f"more{index}.npy"], "conversations": turns}
            handle.write(json.dumps(row) + "\n")
    wanted = geometry("medm-vl-ct", size=(8, 128, 128))
    (tmp_path / "g.yaml").write_text("base: medm-vl-ct\nsize: [8, 128, 128]\n")
    command = [sys.executable, "-m", "medmvl", "data", "cache", str(scans), "--geometry", str(tmp_path / "g.yaml")]
    command += ["--out", str(tmp_path / "killed")]
    build_cache(scans, wanted, tmp_path / "whole")
    rng, halves = random.Random(0), 0
    for _ in range(6):
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (tmp_path / "killed" / "manifest.json").exists() and job.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))
        halves += job.poll() is None
        job.send_signal(signal.SIGKILL)
        job.wait()
    assert halves  # some were killed at work
    subprocess.run(command, check=True, capture_output=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_one_writer_at_a_time(scans: Path, tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "cache", GEOMETRY)
    with pytest.raises(BusyError, match="Another process"):
        build_cache(scans, GEOMETRY, tmp_path / "cache")
    writer.close()
    assert build_cache(scans, GEOMETRY, tmp_path / "cache").prepared == 7


def test_a_shard_is_small_in_memory_whatever_the_geometry(tmp_path: Path) -> None:
    sizes = {name: CacheWriter(tmp_path / name, geometry(name)).shard_size for name in ("medm-vl-ct", "m3d", "ct-clip")}
    assert sizes == {"medm-vl-ct": 32, "m3d": 8, "ct-clip": 1}


@pytest.mark.slow
def test_worker_processes_make_the_same_cache(scans: Path, tmp_path: Path) -> None:
    build_cache(scans, GEOMETRY, tmp_path / "one")
    build_cache(scans, GEOMETRY, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_ray_makes_the_same_cache(scans: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    build_cache(scans, GEOMETRY, tmp_path / "one")
    np.save(scans.parent / "scan5.npy", np.full((3, 4, 5), -1024, dtype=np.int16))  # one that fails
    report = build_cache(scans, GEOMETRY, tmp_path / "ray", workers=2, engine="ray")
    assert report.prepared == 6
    assert [number for number, _ in report.failures] == [5]
    one, many = CacheReader(tmp_path / "one", root=scans.parent), CacheReader(tmp_path / "ray", root=scans.parent)
    for name in ("scan0.npy", "scan4.npy", "series"):
        assert torch.equal(one.tensor(scans.parent / name), many.tensor(scans.parent / name))


def test_failures_are_counted_named_by_record_and_retried(scans: Path, tmp_path: Path) -> None:
    good = (scans.parent / "scan2.npy").read_bytes()
    (scans.parent / "scan2.npy").write_bytes(good[:100])
    np.save(scans.parent / "scan4.npy", np.full((3, 4, 5), -1024, dtype=np.int16))
    (scans.parent / "scan5.npy").unlink()
    with scans.open("a") as handle:
        handle.write('{"id": "x", "conversations": 7}\n')
    result = CliRunner().invoke(
        app, ["data", "cache", str(scans), "--geometry", "medm-vl-ct", "--out", str(tmp_path / "cache")]
    )
    assert result.exit_code == 1
    assert "4 volumes prepared, 0 already there, 4 failed" in result.output
    rows = [json.loads(line) for line in (tmp_path / "cache" / FAILURES).read_text().splitlines()]
    assert [row["record"] for row in rows] == [2, 4, 5, 8]
    (scans.parent / "scan2.npy").write_bytes(good)
    report = build_cache(scans, geometry("medm-vl-ct"), tmp_path / "cache")
    assert (report.prepared, report.kept, len(report.failures)) == (1, 4, 3)


def test_no_patient_in_the_cache(scans: Path, tmp_path: Path) -> None:
    (scans.parent / "scan1.npy").write_bytes(b"broken")
    for path in (scans.parent / "series").iterdir():
        path.write_bytes(path.read_bytes()[:-20])
        break
    folder = scans.parent / "scan 77 of Anna Schmidt"
    write_series(folder, random_hu(), SeriesInstanceUID="1.2.840.99.1")
    next(folder.iterdir()).rename(folder / "Anna Schmidt 1")
    (folder / "Anna Schmidt 1").write_bytes((folder / "Anna Schmidt 1").read_bytes()[:-20])
    two = write_series(scans.parent / "two", random_hu(), SeriesInstanceUID="1.2.840.99.2")
    write_series(two / "other", random_hu(), SeriesInstanceUID="1.2.840.99.3")
    named = write_series(scans.parent / "named", random_hu((3, 4, 5)))
    for path in named.iterdir():  # a name where a number should be
        content = path.read_bytes()
        path.write_bytes(content.replace(b"0.8\\0.7 ", b"Secret\\1")) if b"0.8\\0.7 " in content else None
    turns = [{"from": "human", "value": "<image3d>"}, {"from": "gpt", "value": "."}]
    rows = [
        {"id": f"patient-{name}", "image3d": [name], "conversations": turns} for name in (folder.name, "two", "named")
    ]
    rows.append({"id": "patient-x", "conversations": 7})
    with scans.open("a") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)
    scans = scans.rename(scans.with_name("Mueller.jsonl"))
    result = CliRunner().invoke(
        app, ["data", "cache", str(scans), "--geometry", "m3d", "--units", "HU", "--out", str(tmp_path / "cache")]
    )
    assert result.exit_code == 1
    reasons = (tmp_path / "cache" / FAILURES).read_text()
    assert reasons.count("reason") == 6, reasons
    written = contents(tmp_path / "cache") | {"log": result.output.replace(str(tmp_path), "").encode()}
    for name, content in written.items():
        for secret in (
            "Mueller",
            "Hans",
            "patient-",
            "scan1",
            "Secret",
            "ID-12345",
            "dcm",
            "Anna",
            "Schmidt",
            "840.99",
        ):
            assert secret.encode() not in content, (name, secret)
            assert secret not in name


def test_another_geometry_is_refused_with_both_hashes(scans: Path, tmp_path: Path) -> None:
    build_cache(scans, GEOMETRY, tmp_path / "cache")
    other = geometry("medm-vl-ct", size=(4, 32, 32))
    both = f"{GEOMETRY.hash}.*{other.hash}"
    with pytest.raises(GeometryError, match=both):
        CacheReader(tmp_path / "cache", other)
    with pytest.raises(GeometryError, match=both):
        build_cache(scans, other, tmp_path / "cache")
    with pytest.raises(GeometryError, match=both):
        VolumeProcessor(other).use_cache(tmp_path / "cache")


def test_a_volume_of_another_geometry_is_refused_with_both_hashes(scans: Path) -> None:
    other = geometry("medm-vl-ct", size=(4, 32, 32))
    volume = read_volume(scans.parent / "scan0.npy")
    processor = VolumeProcessor(GEOMETRY)
    assert torch.equal(processor(GEOMETRY.prepare(volume)), processor(volume))
    with pytest.raises(GeometryError, match=f"{other.hash}.*{GEOMETRY.hash}"):
        processor(other.prepare(volume))


def test_a_changed_source_is_never_stale_silently(scans: Path, tmp_path: Path) -> None:
    build_cache(scans, GEOMETRY, tmp_path / "cache")
    path = scans.parent / "scan1.npy"
    content = path.read_bytes()
    path.write_bytes(content)  # a copy: another time, the same bytes
    assert CacheReader(tmp_path / "cache", root=scans.parent).tensor(path) is not None
    np.save(path, random_hu(seed=77))
    with pytest.raises(StaleCacheError, match="changed since"):
        CacheReader(tmp_path / "cache", root=scans.parent).tensor(path)
    report = build_cache(scans, GEOMETRY, tmp_path / "cache")
    assert (report.prepared, report.kept) == (1, 6)
    renewed = CacheReader(tmp_path / "cache", root=scans.parent).tensor(path)
    assert renewed is not None
    assert torch.equal(renewed, GEOMETRY(read_volume(path)))
    path.unlink()  # a machine that has the cache only
    assert CacheReader(tmp_path / "cache", root=scans.parent).tensor(path) is not None


def test_other_options_of_reading_are_another_volume(scans: Path, tmp_path: Path) -> None:
    raw = np.abs(random_hu((4, 8, 9))) + 900  # no air: the units must be said
    np.save(scans.parent / "scan1.npy", raw)
    (tmp_path / "g.yaml").write_text("base: m3d\nsize: [4, 8, 9]\n")
    m3d = geometry(tmp_path / "g.yaml")
    assert len(build_cache(scans, m3d, tmp_path / "cache").failures) == 1
    report = build_cache(scans, m3d, tmp_path / "cache", roots=MediaRoots(reading=ReadOptions(units="HU")))
    assert (report.prepared, report.kept) == (7, 0)  # as HU all of them: nobody asked before
    assert build_cache(scans, m3d, tmp_path / "cache", roots=MediaRoots(reading=ReadOptions(units="HU"))).kept == 7
    assert "HU" not in (tmp_path / "cache" / "shard-00000.json").read_text()


def test_a_rule_for_gaps_renews_only_what_has_some(scans: Path, tmp_path: Path) -> None:
    slices = {dcmread(path).ImagePositionPatient[2]: path for path in (scans.parent / "series").iterdir()}
    slices[sorted(slices)[2]].unlink()
    report = build_cache(scans, GEOMETRY, tmp_path / "cache")
    assert (report.prepared, len(report.failures)) == (6, 1)
    report = build_cache(scans, GEOMETRY, tmp_path / "cache", roots=MediaRoots(reading=ReadOptions(gaps="fill")))
    assert (report.prepared, report.kept) == (1, 6)
    filled = CacheReader(tmp_path / "cache", root=scans.parent).tensor(scans.parent / "series")
    report = build_cache(scans, GEOMETRY, tmp_path / "cache", roots=MediaRoots(reading=ReadOptions(gaps="keep")))
    assert (report.prepared, report.kept) == (1, 6)
    kept = CacheReader(tmp_path / "cache", root=scans.parent).tensor(scans.parent / "series")
    assert not torch.equal(filled, kept)


def test_the_processor_takes_volumes_from_the_cache(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_cache(scans, GEOMETRY, tmp_path / "cache")
    processor = VolumeProcessor(GEOMETRY)
    expected = processor(str(scans.parent / "scan0.npy"))
    processor.use_cache(tmp_path / "cache", scans.parent)
    monkeypatch.setattr("medmvl.processing.volume3d.read_volume", lambda path: pytest.fail("read from the file"))
    assert torch.equal(processor(str(scans.parent / "scan0.npy")), expected)


def test_a_damaged_cache_says_so(scans: Path, tmp_path: Path) -> None:
    build_cache(scans, GEOMETRY, tmp_path / "cache", shard_size=3)
    key = key_of(scans.parent / "scan0.npy", scans.parent, CacheReader(tmp_path / "cache").salt)
    (tmp_path / "cache" / "shard-00000.npy").write_bytes(b"junk")
    with pytest.raises(ImagingError, match="damaged"):
        CacheReader(tmp_path / "cache")[key]
    (tmp_path / "cache" / "shard-00001.json").unlink()
    with pytest.raises(ImagingError, match="lacks shard 1"):
        CacheReader(tmp_path / "cache")
    writer = CacheWriter(tmp_path / "other", GEOMETRY)
    with pytest.raises(ImagingError, match="takes"):
        writer.add("k", np.zeros((1, 2, 2, 2), dtype=np.uint8), Fingerprint(0, 0, ""))


def test_command_line_asks_for_one_geometry(scans: Path, tmp_path: Path) -> None:
    from medmvl.cli.geometry_choice import find_geometry
    from medmvl.errors import RecipeError

    with pytest.raises(RecipeError, match="either --model"):
        find_geometry(None, None)
    assert find_geometry(None, "m3d").name == "m3d"
    recipe = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
    found = find_geometry(recipe, None)
    assert (found.name, found.size) == ("medm-vl-ct", (8, 64, 64))


def test_key_is_no_plain_hash_of_a_path(scans: Path, tmp_path: Path) -> None:
    build_cache(scans, GEOMETRY, tmp_path / "a")
    build_cache(scans, GEOMETRY, tmp_path / "b")
    texts = [(tmp_path / name / "shard-00000.json").read_text() for name in ("a", "b")]
    plain = hashlib.sha256(b"scan0.npy").hexdigest()
    keys = [{row["key"] for row in json.loads(text)} for text in texts]
    assert plain[:8] not in texts[0] + texts[1]
    assert not keys[0] & keys[1]


def test_cache_of_an_earlier_version_is_read_without_salt(scans: Path, tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "cache", GEOMETRY)
    writer.salt = ""
    path = scans.parent / "scan0.npy"
    writer.add(key_of(path, scans.parent), GEOMETRY(read_volume(path)).numpy(), Fingerprint.of(path))
    writer.close()
    manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
    del manifest["salt"]
    (tmp_path / "cache/manifest.json").write_text(json.dumps(manifest))
    assert CacheReader(tmp_path / "cache", GEOMETRY, scans.parent).tensor(path) is not None
    assert build_cache(scans, GEOMETRY, tmp_path / "cache").kept == 1
