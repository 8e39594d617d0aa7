"""Recipes as data: the schema that checks every key. YAML is only its spelling.

The text under each field is its documentation; `docs/recipe-reference.md` is generated from it.
"""

from medmvl.training.recipe.base import PART_NAMES, FolderName, PartName, Section
from medmvl.training.recipe.data import AugmentSection, DataSection, PhantomSection
from medmvl.training.recipe.model import LLMSection, ModelSection, TokenizerSection, TowerSection
from medmvl.training.recipe.parts import LoRASection, PartSection
from medmvl.training.recipe.recipe import Recipe, RunSection, register_stage
from medmvl.training.recipe.stages import (
    STAGES,
    ContrastiveSection,
    ContrastiveStage,
    EvaluateSection,
    LanguageStage,
    StageSection,
    TextEncoderSection,
)

__all__ = [
    "PART_NAMES",
    "STAGES",
    "AugmentSection",
    "ContrastiveSection",
    "ContrastiveStage",
    "DataSection",
    "EvaluateSection",
    "FolderName",
    "LLMSection",
    "LanguageStage",
    "LoRASection",
    "ModelSection",
    "PartName",
    "PartSection",
    "PhantomSection",
    "Recipe",
    "RunSection",
    "Section",
    "StageSection",
    "TextEncoderSection",
    "TokenizerSection",
    "TowerSection",
    "register_stage",
]
