"""Chat templates that the stages of a recipe train with."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from medmvl.training.build import build_config
from medmvl.training.environment import prepare
from medmvl.training.recipe import LanguageStage
from medmvl.training.recipe_io import load_recipe


def stage_templates(recipe: Path) -> dict[str, tuple[str, PreTrainedTokenizerBase]]:
    """Return name -> (Jinja template, tokenizer) of each language stage of a recipe; no weight is read.

    Raises:
        RecipeError, ModelError: if the recipe or its parts are not usable.
    """
    loaded = load_recipe(recipe)
    prepare(loaded)
    if loaded.model.encoder_only:
        return {}
    _, processor = build_config(loaded)
    found = {}
    for stage in loaded.stages:
        if isinstance(stage, LanguageStage):
            if stage.template is not None:
                processor.with_template(stage.template)
            found[stage.name] = (processor.chat_template, processor.tokenizer)
    return found
