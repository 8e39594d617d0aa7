"""The main job, end to end, in minutes on two CPU cores."""

from medmvl.experiments.quickstart.data import PATIENTS, draw, patient_counts
from medmvl.experiments.quickstart.place import Quickstart
from medmvl.experiments.quickstart.run import quickstart
from medmvl.experiments.quickstart.training import PRETRAINED_LLM, encoder_recipe, recipe

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
