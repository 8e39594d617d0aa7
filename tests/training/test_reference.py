"""The parameter reference in the docs is the one that the schema gives."""

from __future__ import annotations

from pathlib import Path

from medmvl.imaging.preprocessing.augment import Augmentation
from medmvl.training.recipe import Section
from recipe_reference import SECTIONS, recipe_reference

FILE = Path(__file__).parents[2] / "docs" / "recipe-reference.md"


def test_the_reference_is_current():
    assert FILE.read_text(encoding="utf-8") == recipe_reference(), (
        "run: python tools/recipe_reference.py docs/recipe-reference.md"
    )


def descendants(section):
    return {found for child in section.__subclasses__() for found in (child, *descendants(child))}


def test_every_section_and_field_is_described():
    # Other files have other sections (a comparison's matrix): the reference is that of a recipe.
    package = Section.__module__.rpartition(".")[0]
    of_a_recipe = {section for section in descendants(Section) if section.__module__.startswith(package)}
    assert {section for _, section in SECTIONS} == of_a_recipe | {Augmentation}
    for _, section in SECTIONS:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no text"
