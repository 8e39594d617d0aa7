"""The default name of a model is that of its folder, for `medmvl demo` and `medmvl serve` alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from medmvl.cli.main import app
from medmvl.serving.model_names import model_names


@pytest.fixture
def linked(tmp_path) -> Path:
    """A link `model` to a folder with another name."""
    (tmp_path / "stage-3").mkdir()
    (tmp_path / "model").symlink_to("stage-3")
    return tmp_path / "model"


def test_page_and_server_show_a_link_by_its_own_name(linked, monkeypatch):
    shown = []
    monkeypatch.setattr("medmvl.serving.page.run._load", lambda name, folder, loading: shown.append(name) or 1 / 0)
    monkeypatch.setattr(
        "medmvl.serving.server.run.run_server", lambda _, settings, *rest, **more: shown.append(settings.name)
    )
    for command in ("demo", "serve"):
        CliRunner().invoke(app, [command, "--model", str(linked)])
    assert shown == ["model", "model"]


def test_relative_folders_have_names(linked, monkeypatch):
    monkeypatch.chdir(linked.parent / "stage-3")
    assert model_names([Path()]) == ["stage-3"]


def test_folders_of_one_name_are_told_apart():
    assert model_names([Path("runs/a/model"), Path("runs/b/model")]) == ["a/model", "b/model"]
    assert model_names([Path("/x/a/1/model"), Path("/x/b/1/model")]) == ["a/1/model", "b/1/model"]
    assert model_names([Path("runs/a/model"), Path("runs/a/other")]) == ["model", "other"]
    assert model_names([Path("/a/model"), Path("/model")]) == ["a/model", "model"]
