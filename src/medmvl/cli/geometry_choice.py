"""The volume geometry that a command line names: of a checkpoint, of a recipe, or by its own name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medmvl.imaging import Geometry


def find_geometry(model: Path | None, name: str | None) -> Geometry:
    """Return the geometry of a checkpoint folder, of a recipe, or of a name.

    Raises:
        RecipeError: if neither or both are given, or the model has no volume tower.
    """
    from medmvl.errors import RecipeError
    from medmvl.imaging import geometry as geometry_of

    if (model is None) == (name is None):
        raise RecipeError("Give either --model (a checkpoint folder or a recipe) or --geometry (a name or .yaml file).")
    if name is not None:
        return geometry_of(name)
    assert model is not None
    found = _of_recipe(model) if model.suffix in (".yaml", ".yml") else _of_folder(model)
    if found is None:
        raise RecipeError(f"{model} has no volume tower: there is nothing to cache.")
    return found


def _of_folder(folder: Path) -> Geometry | None:
    from medmvl.files import existing_folder
    from medmvl.processing import MedMVLProcessor

    volume = MedMVLProcessor.from_pretrained(existing_folder(folder, "checkpoint")).volume_processor
    return volume.geometry if volume else None


def _of_recipe(path: Path) -> Geometry | None:
    """The geometry as training will make it, without building a model or a tokenizer."""
    from medmvl.training.build import volume_geometry
    from medmvl.training.recipe_io import load_recipe

    section = load_recipe(path).model
    if section.from_ is not None:
        return _of_folder(Path(section.from_))
    return volume_geometry(section.volume) if section.volume is not None else None
