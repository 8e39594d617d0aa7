"""Converted checkpoints that several tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.parity.sets import HERE

from medmvl.checkpoints import convert


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a converted variant, by the beginning of its name; converted once."""
    done: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in done:
            (source,) = (HERE / "checkpoints").glob(f"{name}_*")
            done[name] = tmp_path_factory.mktemp("converted") / source.name
            convert(source, done[name])
        return done[name]

    return get
