"""The parameter reference in the docs is the one that the schema gives."""

from __future__ import annotations

from pathlib import Path

from medmvl.imaging.augment import Augmentation
from medmvl.training.recipe import Section
from medmvl.training.reference import SECTIONS, recipe_reference

FILE = Path(__file__).parents[2] / "docs" / "recipe-reference.md"


def test_the_reference_is_current():
    assert FILE.read_text(encoding="utf-8") == recipe_reference(), (
        "run: python -m medmvl.training.reference docs/recipe-reference.md"
    )


def test_every_section_and_field_is_described():
    # Other files have sections of their own (a comparison's matrix): the reference is that of a recipe.
    of_a_recipe = {section for section in Section.__subclasses__() if section.__module__ == Section.__module__}
    assert {section for _, section in SECTIONS} == of_a_recipe | {Augmentation}
    for _, section in SECTIONS:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no text"
