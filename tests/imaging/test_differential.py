"""The differential test: random legal files are read as they were written and as independent readers read them."""

from __future__ import annotations

import pytest

from imaging.differential import run

pytest.importorskip("SimpleITK", reason="an independent reader of the differential test")
pytest.importorskip("tifffile", reason="an independent reader of the differential test")


@pytest.mark.slow
def test_no_silent_difference_in_random_files() -> None:
    outcome = run(files=5000, seed=1_000_000)
    assert outcome.files >= 5000
    assert not outcome.silent


def test_no_silent_difference_in_a_few_files() -> None:
    outcome = run(files=40, seed=0)
    assert not outcome.silent
    assert sum(n for (_, result), n in outcome.counts.items() if result == "equal") >= 10
