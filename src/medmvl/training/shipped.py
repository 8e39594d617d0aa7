"""The recipes that come with the package."""

from __future__ import annotations

from pathlib import Path

import medmvl


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes: inside an installed package, or at the root of a checkout."""
    package = Path(medmvl.__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def shipped_recipes() -> list[Path]:
    """Return the files of all shipped recipes, sorted."""
    return sorted(recipes_folder().rglob("*.yaml"))
