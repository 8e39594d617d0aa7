"""A mixture shows what its weights promise, in an order that follows from the seed alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from medmvl.data.dataset import SampleDataset
from medmvl.data.formats import write_records
from medmvl.data.mixture import Mixture
from medmvl.errors import DataError


def dataset(folder, name, size):
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    write_records(folder / f"{name}.jsonl", [{"id": f"{name}{i}", "conversations": turns} for i in range(size)])
    return SampleDataset(folder / f"{name}.jsonl")


@pytest.fixture
def datasets(tmp_path):
    return {"a": dataset(tmp_path, "a", 10), "b": dataset(tmp_path, "b", 4)}


def test_an_epoch_shows_every_record_once(datasets):
    mixture = Mixture(datasets, seed=1)
    assert len(mixture) == mixture.epoch_size == 14
    for epoch in range(3):
        assert sorted(mixture.stream(14 * epoch, 14)) == list(range(14))
    assert list(mixture.stream(0, 14)) != list(mixture.stream(14, 14))
    assert {mixture[n].id for n in range(14)} == {f"a{i}" for i in range(10)} | {f"b{i}" for i in range(4)}


def test_the_stream_may_be_entered_anywhere(datasets):
    whole = Mixture(datasets, seed=3).stream(0, 100)
    pieces = [Mixture(datasets, seed=3).stream(start, 7) for start in range(0, 98, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole[:98])
    assert not np.array_equal(Mixture(datasets, seed=4).stream(0, 100), whole)


def test_weights_count_and_a_half_weight_shows_the_rest_next_time(datasets):
    mixture = Mixture(datasets, {"a": 0.5, "b": 2.0})
    assert mixture.draws() == {"a": 5, "b": 8}
    first, second = mixture.stream(0, 13), mixture.stream(13, 13)
    assert Counter(n for n in first if n >= 10) == dict.fromkeys(range(10, 14), 2)
    assert sorted(n for n in [*first, *second] if n < 10) == list(range(10))


def test_a_record_is_never_shown_twice_in_one_pass(datasets):
    mixture = Mixture(datasets, {"a": 0.5, "b": 2.0}, seed=2)
    shown = list(zip(mixture.stream(0, 65).tolist(), mixture.passes(0, 65).tolist(), strict=True))
    assert len(set(shown)) == len(shown) == 65  # five epochs: a 2.5 times, b ten times
    assert {epoch for number, epoch in shown if number < 10} == {0, 1, 2}
    assert {epoch for number, epoch in shown if number >= 10} == set(range(10))
    again = Mixture(datasets, {"a": 0.5, "b": 2.0}, seed=2)
    assert again.passes(30, 20).tolist() == [epoch for _, epoch in shown[30:50]]


def test_temperature_evens_out(datasets):
    assert Mixture(datasets, temperature=1).draws() == {"a": 10, "b": 4}
    assert Mixture(datasets, temperature=1e9).draws() == {"a": 7, "b": 7}


def test_nothing_to_draw_from_is_an_error(tmp_path, datasets):
    with pytest.raises(DataError, match="no data set"):
        Mixture({})
    with pytest.raises(DataError, match="Known: a, b"):
        Mixture(datasets, {"aa": 1})
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(DataError, match="'e' holds no record"):
        Mixture({"e": SampleDataset(tmp_path / "empty.json")})
