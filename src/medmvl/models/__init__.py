"""The model: an LLM with towers for images and volumes. This package imports neither `imaging` nor `data`."""

from medmvl.models.configuration import MedMVLConfig
from medmvl.models.modeling import MedMVLForConditionalGeneration, MedMVLOutput, parts

__all__ = ["MedMVLConfig", "MedMVLForConditionalGeneration", "MedMVLOutput", "parts"]
