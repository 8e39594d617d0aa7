"""The model: an LLM with towers for images and volumes. This room knows neither files nor data sets."""

from transformers import AutoConfig, AutoModelForImageTextToText

from medmvl.models.configuration import MedMVLConfig
from medmvl.models.modeling import MedMVLForConditionalGeneration, MedMVLOutput, parts

AutoConfig.register(MedMVLConfig.model_type, MedMVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(MedMVLConfig, MedMVLForConditionalGeneration, exist_ok=True)

__all__ = ["MedMVLConfig", "MedMVLForConditionalGeneration", "MedMVLOutput", "parts"]
