"""A file of any format gives the same samples; media stay below their roots; a million records cost little."""

from __future__ import annotations

import json
import pickle
import resource
import time

import pytest

from medmvl.data import dataset as dataset_module
from medmvl.data.dataset import SampleDataset
from medmvl.data.formats import write_records
from medmvl.data.roots import MediaRoots
from medmvl.errors import DataError


def record(i, **more):
    turns = [{"from": "human", "value": f"Frage {i} ü€🫁"}, {"from": "gpt", "value": f"answer {i}"}]
    return {"id": f"r{i}", "conversations": turns, **more}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_index_access_equals_the_file(tmp_path, suffix, monkeypatch):
    monkeypatch.setenv("MEDMVL_CACHE", str(tmp_path / "cache"))
    records = [record(i, side="left" if i % 2 else None, n=i) for i in range(7)]
    records = [{key: value for key, value in row.items() if value is not None} for row in records]
    write_records(tmp_path / f"d{suffix}", records)
    data = SampleDataset(tmp_path / f"d{suffix}")
    assert len(data) == 7
    assert [data.record(i) for i in range(7)] == records
    assert data[-1].id == "r6"
    assert [s.messages[1].text for s in data] == [f"answer {i}" for i in range(7)]
    with pytest.raises(IndexError):
        data[7]


def test_pretty_printed_array_and_blank_lines(tmp_path):
    (tmp_path / "a.json").write_text("\n " + json.dumps([record(i) for i in range(4)], indent=3, ensure_ascii=False))
    assert SampleDataset(tmp_path / "a.json")[3].messages[0].text == "Frage 3 ü€🫁"
    (tmp_path / "b.jsonl").write_text("\n\n".join(json.dumps(record(i)) for i in range(3)) + "\n \n")
    data = SampleDataset(tmp_path / "b.jsonl")
    assert len(data) == 3
    assert data.where(2) == "b.jsonl, line 5"


@pytest.mark.parametrize(
    ("text", "words"),
    [("[{}", "ends in the middle"), ("[{},]", "no item after item 1"), ("[{} {}]", "comma"), ("[{}] x", "more text")],
)
def test_broken_array_is_refused_at_opening(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=words):
        SampleDataset(tmp_path / "a.json")


def test_empty_array_has_no_records(tmp_path):
    (tmp_path / "a.json").write_text("[ ]")
    assert len(SampleDataset(tmp_path / "a.json")) == 0


def test_broken_line_is_named_on_access(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(record(0)) + "\n{oops\n")
    data = SampleDataset(tmp_path / "a.jsonl")
    assert data[0].id == "r0"
    with pytest.raises(DataError, match=r"a.jsonl, line 2: not valid"):
        data[1]


def test_media_are_absolute_and_stay_below_their_root(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").touch()
    (tmp_path / "secret.png").touch()
    question = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "A lung."}]
    rows = [{"id": p, "conversations": question, "image": p} for p in ("x.png", "../secret.png", "gone.png")]
    write_records(tmp_path / "d.jsonl", rows)
    data = SampleDataset(tmp_path / "d.jsonl", roots=MediaRoots(image=tmp_path / "images"))
    assert data[0].images == (str(tmp_path / "images" / "x.png"),)
    assert data.sample(1).images == ("../secret.png",)
    for index, words in ((1, "leaves the root"), (2, "does not exist")):
        with pytest.raises(DataError, match=words) as caught:
            data[index]
        assert f"line {index + 1}, record {rows[index]['id']!r}" in str(caught.value)


def test_data_set_can_be_sent_to_a_worker(tmp_path):
    write_records(tmp_path / "d.jsonl", [record(i) for i in range(3)])
    data = SampleDataset(tmp_path / "d.jsonl")
    assert data[1].id == "r1"
    assert pickle.loads(pickle.dumps(data))[2].id == "r2"


def test_index_is_cached_and_follows_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDMVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset_module, "CACHED_FROM_BYTES", 1)
    file = tmp_path / "d.jsonl"
    write_records(file, [record(i) for i in range(3)])
    assert len(SampleDataset(file)) == 3
    cached = list((tmp_path / "cache" / "index").iterdir())
    assert len(cached) == 1
    monkeypatch.setattr(dataset_module, "_spans", lambda *_: pytest.fail("the cache was not used"))
    assert SampleDataset(file)[2].id == "r2"
    monkeypatch.undo()
    monkeypatch.setenv("MEDMVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset_module, "CACHED_FROM_BYTES", 1)
    write_records(file, [record(i) for i in range(5)])
    assert len(SampleDataset(file)) == 5


def test_a_million_records_open_within_seconds_and_megabytes(tmp_path):
    file = tmp_path / "big.jsonl"
    line = json.dumps(record(0)).encode() + b"\n"
    with file.open("wb") as handle:
        for _ in range(100):
            handle.write(line * 10_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.thread_time()
    data = SampleDataset(file)
    assert len(data) == 1_000_000
    assert data[999_999].id == "r0"
    assert time.thread_time() - begin < 10  # measured 0.3 s
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 300  # MB
