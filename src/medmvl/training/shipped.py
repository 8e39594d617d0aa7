"""Recipes that come with the package."""

from __future__ import annotations

from pathlib import Path

import medmvl
from medmvl.errors import RecipeError, did_you_mean


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes: inside an installed package, or at the root of a checkout."""
    package = Path(medmvl.__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


#: Files of evaluation recipes (`medmvl evaluate --recipe`); all others are training recipes.
_EVALUATION = "evaluate-*.yaml"


def shipped_recipes() -> list[Path]:
    """Return the files of all shipped training recipes, sorted."""
    return sorted(set(recipes_folder().rglob("*.yaml")) - set(shipped_evaluations()))


def shipped_evaluations() -> list[Path]:
    """Return the files of all shipped evaluation recipes, sorted."""
    return sorted(recipes_folder().glob(_EVALUATION))


def find_recipe(recipe: Path, *, evaluation: bool = False) -> Path:
    """Return the file of a recipe given as a path or as the name of a shipped one, such as `tiny`.

    Args:
        recipe: path or name.
        evaluation: search the evaluation recipes instead of the training recipes.

    Raises:
        RecipeError: if there is neither.
    """
    if recipe.is_file():
        return recipe
    folder = recipes_folder()
    shipped = shipped_evaluations() if evaluation else shipped_recipes()
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in shipped}
    # A recipe in a separate folder can also be given by the folder's name.
    short = {name.removesuffix("/recipe"): path for name, path in names.items() if name.endswith("/recipe")}
    found = (names | short).get(str(recipe))
    if found is None:
        raise RecipeError(
            f"There is no recipe {recipe}: neither a file nor a shipped one. {did_you_mean(str(recipe), names)}"
        )
    return found
