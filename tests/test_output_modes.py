"""Permissions of what commands write: models are readable by every user, patient data by their own user only."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.checkpoints.conftest import converted  # noqa: F401
from tests.training.conftest import data_folder, recipe  # noqa: F401

from medmvl.checkpoints import export_gguf, export_llava
from medmvl.data.dataset import SampleDataset, cache_folder
from medmvl.data.formats import write_records
from medmvl.files import atomic_directory, private_folder
from medmvl.imaging import geometry
from medmvl.imaging.feature_store import FeatureStore
from medmvl.processing.cache import build_cache
from medmvl.serving.page.sessions import Sessions
from medmvl.serving.page.settings import PageSettings
from medmvl.training.run import train


@pytest.fixture(params=[0o022, 0o077], ids=["umask-022", "umask-077"], autouse=True)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> tuple[set[int], set[int]]:
    """Return the modes of the folders (`folder` included) and of the files of a tree."""
    tree = [folder, *folder.rglob("*")]
    return tuple({path.stat().st_mode & 0o777 for path in tree if path.is_dir() == wanted} for wanted in (True, False))


SHARED, PRIVATE = ({0o755}, {0o644}), ({0o700}, {0o600})


@pytest.mark.parametrize(("private", "expected"), [(False, SHARED), (True, PRIVATE)])
def test_atomic_directory_sets_modes_of_all_it_holds(tmp_path: Path, private: bool, expected: object) -> None:
    with atomic_directory(tmp_path / "out", private=private) as folder:
        assert folder.stat().st_mode & 0o077 == 0  # closed until it is complete
        (folder / "inner").mkdir()
        for name, mode in (("a", 0o600), ("inner/b", 0o755)):
            (folder / name).touch()
            (folder / name).chmod(mode)
    assert modes(tmp_path / "out") == expected


def test_trained_checkpoints_are_readable_by_every_user(recipe: Callable, tmp_path: Path) -> None:  # noqa: F811
    lora = {"train": {"llm": {"mode": "lora", "lora": {"r": 2}}}, "save_every": 1}
    model = train(recipe({"max_steps": 1, **lora}), tmp_path / "run")
    assert modes(model) == SHARED
    stage = tmp_path / "run" / "s0"
    weights = [file for file in stage.rglob("*") if file.suffix in (".safetensors", ".json")]
    assert len(weights) > 3
    assert {file.stat().st_mode & 0o777 for file in weights} == {0o644}
    assert {file.parent.stat().st_mode & 0o777 for file in weights} == {0o755}


def test_converted_and_exported_models_are_readable_by_every_user(
    converted: Callable[[str], Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    source = converted("v1")
    export_llava(source, tmp_path / "llava")
    export_gguf(source, tmp_path / "gguf")
    for folder in (source, tmp_path / "llava", tmp_path / "gguf"):
        assert modes(folder) == SHARED


def test_caches_of_patient_data_are_private(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMVL_CACHE", str(tmp_path / "user-cache"))
    rows = [{"id": "a", "image3d": ["a.npy"], "conversations": [{"from": "human", "value": "<image3d>\nWhat?"}]}]
    for name in ("records.jsonl", "records.parquet"):
        write_records(media / name, [dict(row, answer="yes") for row in rows])
    small = geometry("medm-vl-ct", size=(4, 32, 32))
    assert build_cache(media / "records.jsonl", small, tmp_path / "volumes").prepared == 1
    FeatureStore(tmp_path / "features", "a" * 16, "b" * 16).put("a.npy", torch.zeros(2))
    assert len(SampleDataset(media / "records.parquet")) == 1
    (tmp_path / "home").mkdir()
    sessions = Sessions(PageSettings(), tmp_path / "home")
    visitor = sessions.get(asyncio.run(sessions.begin(None))).folder
    folders = [tmp_path / "volumes", tmp_path / "features", cache_folder() / "arrow", visitor]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}


def test_existing_folder_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    (tmp_path / "group").chmod(0o750)
    assert private_folder(tmp_path / "group").stat().st_mode & 0o777 == 0o750
