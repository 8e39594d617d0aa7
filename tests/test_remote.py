"""Files of object stores: what may be a URL, what is fetched, the local copies and their limit."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import stat
from pathlib import Path

import numpy as np
import pytest

import medmvl.remote as remote
from imaging.dicom_writing import random_hu, write_series
from medmvl.data.dataset import SampleDataset
from medmvl.data.read_options import ReadOptions, reading_of, with_reading
from medmvl.data.roots import MediaRoots
from medmvl.errors import DataError, ImagingError, MedMVLError
from medmvl.files import write_json, write_jsonl
from medmvl.imaging import read_image, read_volume
from medmvl.remote import RemotePath, as_root, cache_limit, join, local_copy, local_range, make_room, moved
from miniatures import picture
from stores import folder_store


@pytest.fixture
def store(tmp_path):
    with folder_store(tmp_path / "store", tmp_path / "cache") as found:
        (tmp_path / "store" / "bucket").mkdir(parents=True)
        yield found


@pytest.mark.parametrize("root", ["s3://bucket/a", "gs://bucket/a/", "https://host/a", "http://127.0.0.1:9000/b"])
def test_roots_may_be_urls(root):
    assert isinstance(as_root(root), RemotePath)
    assert not as_root(root).endswith("/")


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("http://host/a", "not of a known kind"),
        ("ftp://host/a", "s3://, gs://, https://"),
        ("file:///etc", "not of a known kind"),
        ("https://user:secret@host/a", "must not hold a user name"),
        ("http://127.0.0.1.evil.org/a", "not of a known kind"),
    ],
)
def test_other_urls_are_refused(root, message):
    with pytest.raises(DataError, match=message):
        as_root(root)


@pytest.mark.parametrize(
    "path",
    ["https://evil.org/x.png", "s3://other/x.png", "/etc/passwd", "../x.png", "a/../../x.png", "", ".", "x.png?a=b", "a\\..\\x", "data:image/png;base64,AA"],
)  # fmt: skip
def test_record_cannot_leave_its_root(store, tmp_path, path):
    with pytest.raises(DataError):
        join(as_root("s3://bucket/a"), path)
    rows = [{"id": "a", "image": [path], "conversations": [{"from": "human", "value": "<image>\n?"}]}]
    write_jsonl(tmp_path / "d.jsonl", rows)
    with pytest.raises(DataError):
        read_image(SampleDataset(tmp_path / "d.jsonl", MediaRoots("s3://bucket/a"))[0].images[0])
    with pytest.raises(DataError):
        read_image(SampleDataset(tmp_path / "d.jsonl")[0].images[0])
    assert store.reads == []


@pytest.mark.parametrize("read", [read_image, read_volume])
def test_plain_url_is_never_fetched(store, read):
    with pytest.raises(ImagingError, match="Only files below a root"):
        read("s3://bucket/a.png")
    assert store.reads == []


def test_media_root_of_a_remote_report_stays_in_its_bucket():
    assert moved(RemotePath("s3://bucket/data/slake"), "../raw/slake") == "s3://bucket/data/raw/slake"
    assert moved(RemotePath("https://host/slake"), "../../../other/x") == "https://host/other/x"
    assert moved(RemotePath("s3://bucket/slake"), "https://evil.org/") == "s3://bucket/slake/https:/evil.org"


def test_records_and_images_come_from_the_store(store, tmp_path):
    picture(tmp_path / "store/bucket/raw/pictures/a.png")
    rows = [{"id": "a", "image": ["pictures/a.png"], "conversations": [{"from": "human", "value": "<image>\n?"}]}]
    write_jsonl(tmp_path / "store/bucket/data/x/test.jsonl", rows)
    write_json(tmp_path / "store/bucket/data/x/report.json", {"dataset": "x", "media_root": "../../raw"})
    dataset = SampleDataset("s3://bucket/data/x/test.jsonl")
    (path,) = dataset[0].images
    assert path == "s3://bucket/raw/pictures/a.png"
    assert "test.jsonl" in dataset.where(0)
    assert read_image(path).array.shape[:2] == (24, 32)
    count = len(store.reads)
    assert read_image(path).array.shape[:2] == (24, 32)
    assert len(store.reads) == count  # the second reading is from the local copy
    copies = list((tmp_path / "cache").rglob("*.png"))
    assert len(copies) == 1
    assert re.fullmatch(r"[0-9a-f]{40}\.png", copies[0].name)  # a hash, nothing of the object's own name
    assert stat.S_IMODE(copies[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(copies[0].parent.stat().st_mode) == 0o700


def test_folder_of_slices_is_fetched_as_one_volume(store, tmp_path):
    write_series(tmp_path / "store/bucket/ct/series", random_hu())
    volume = read_volume(join(as_root("s3://bucket/ct"), "series"))
    assert np.array_equal(volume.array, read_volume(tmp_path / "store/bucket/ct/series").array)


def test_reading_options_travel_with_a_url(store, tmp_path):
    path = tmp_path / "store/bucket/v.npy"
    np.save(path, np.full((4, 8, 8), 3, dtype=np.int16))
    url = as_root("s3://bucket/v.npy")
    (given,) = with_reading([url], ReadOptions.parse({"units": "HU"}))
    again = pickle.loads(pickle.dumps(given))
    assert isinstance(again, RemotePath)
    assert reading_of(again).units == "HU"
    assert read_volume(again, **reading_of(again).for_volume()).array.shape == (4, 8, 8)


def test_missing_object_is_named(store):
    with pytest.raises(DataError, match=r"s3://bucket/none.png does not exist"):
        read_image(as_root("s3://bucket/none.png"))


def test_unreadable_copy_is_named_by_its_url(store, tmp_path):
    (tmp_path / "store/bucket/bad.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ImagingError, match=r"s3://bucket/bad.png") as caught:
        read_image(as_root("s3://bucket/bad.png"))
    assert str(tmp_path / "cache") not in str(caught.value)


def test_changed_object_is_fetched_again(store, tmp_path):
    file = tmp_path / "store/bucket/a.csv"
    file.write_text("one")
    assert local_copy(as_root("s3://bucket/a.csv")).read_text() == "one"
    file.write_text("three")
    os.utime(file, (1, 1))
    remote._facts.cache_clear()  # a process asks once
    assert local_copy(as_root("s3://bucket/a.csv")).read_text() == "three"


@pytest.mark.parametrize("name", ["/planted-elsewhere.dcm", "../planted-elsewhere.dcm", "a\\..\\planted-elsewhere.dcm"])
def test_listed_names_cannot_leave_the_local_copy(store, tmp_path, monkeypatch, name):
    (tmp_path / "store/bucket/series").mkdir()
    listed = name if name[0] != "/" else f"{tmp_path}{name}"
    found = lambda self, path, **options: {f"{self._strip_protocol(path)}/{listed}": {"size": 3, "ETag": "a"}}  # noqa: E731
    monkeypatch.setattr(store, "find", found)
    monkeypatch.setattr(store, "get_file", lambda self, path, local, **options: Path(local).write_text("abc"))
    with pytest.raises(DataError, match="that leaves it"):
        local_copy(as_root("s3://bucket/series"))
    assert not list(tmp_path.rglob("planted-elsewhere.dcm"))


def test_cut_object_is_refused(store, tmp_path):
    (tmp_path / "store/bucket/x.bin").write_bytes(b"12345")
    with pytest.raises(DataError, match="ends before byte 8"):
        local_range(as_root("s3://bucket/x.bin"), 4, 4, "v1")
    assert local_range(as_root("s3://bucket/x.bin"), 1, 3, "v1").read_bytes() == b"234"


def test_cache_is_bounded_and_keeps_what_was_used_last(store, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "GRACE_SECONDS", 0.0)
    paths = []
    for number in range(5):
        (tmp_path / f"store/bucket/{number}.npy").write_bytes(bytes(1000))
        paths.append(local_copy(as_root(f"s3://bucket/{number}.npy")))
        os.utime(paths[-1], (1000 + number, 0))
    kept = local_copy(as_root("s3://bucket/0.npy"), keep=True)
    os.utime(paths[0], (2000, 0))
    make_room(2500)
    assert [path.exists() for path in paths] == [True, False, False, False, True]
    assert kept.exists()
    assert local_copy(as_root("s3://bucket/1.npy")).stat().st_size == 1000


def test_what_is_being_read_is_not_removed(store, tmp_path):
    (tmp_path / "store/bucket/a.npy").write_bytes(bytes(1000))
    path = local_copy(as_root("s3://bucket/a.npy"))
    make_room(1)
    assert path.exists()


@pytest.mark.parametrize("text", ["none", "-1", "0", "nan"])
def test_limit_must_be_a_number(monkeypatch, text):
    monkeypatch.setenv(remote.LIMIT_VARIABLE, text)
    with pytest.raises(DataError, match="MEDMVL_OBJECT_CACHE_GB must be a number"):
        cache_limit()


def _fetch(_):
    return local_copy(as_root("s3://bucket/a.npy")).stat().st_size


def test_processes_fetch_an_object_once(store, tmp_path):
    (tmp_path / "store/bucket/a.npy").write_bytes(bytes(5000))
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(_fetch, range(9)) == [5000] * 9
    assert len(list((tmp_path / "cache/objects/bounded").glob("[0-9a-f]*"))) == 1


def test_missing_package_is_named(monkeypatch):
    import fsspec

    def refuse(url, **_):
        raise ImportError("Install s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(MedMVLError, match=r"pip install 'medmvl\[objects\]'"):
        remote.exists(as_root("s3://bucket/a"))
