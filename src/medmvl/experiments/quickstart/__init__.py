"""The main job, end to end, in minutes on two CPU cores."""

from typing import TYPE_CHECKING

from medmvl.lazy import lazy_names

if TYPE_CHECKING:
    from medmvl.experiments.quickstart.drawing import PATIENTS, draw, patient_counts
    from medmvl.experiments.quickstart.place import Quickstart
    from medmvl.experiments.quickstart.run import quickstart
    from medmvl.experiments.quickstart.training import PRETRAINED_LLM, encoder_recipe, recipe

_HOMES = {
    "PATIENTS": "medmvl.experiments.quickstart.drawing",
    "PRETRAINED_LLM": "medmvl.experiments.quickstart.training",
    "Quickstart": "medmvl.experiments.quickstart.place",
    "draw": "medmvl.experiments.quickstart.drawing",
    "encoder_recipe": "medmvl.experiments.quickstart.training",
    "patient_counts": "medmvl.experiments.quickstart.drawing",
    "quickstart": "medmvl.experiments.quickstart.run",
    "recipe": "medmvl.experiments.quickstart.training",
}

__all__ = [
    "PATIENTS",
    "PRETRAINED_LLM",
    "Quickstart",
    "draw",
    "encoder_recipe",
    "patient_counts",
    "quickstart",
    "recipe",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
