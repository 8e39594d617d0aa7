"""Training objectives. `base` defines the interface; further ones are registered by plugins."""

from medmvl.training.objectives.base import OBJECTIVES, Objective, register_objective
from medmvl.training.objectives.contrastive import ContrastiveObjective
from medmvl.training.objectives.language import LanguageObjective

__all__ = ["OBJECTIVES", "ContrastiveObjective", "LanguageObjective", "Objective", "register_objective"]
