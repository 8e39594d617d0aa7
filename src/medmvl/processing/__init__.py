"""Samples to tensors and labels: joins imaging, data and models; saved with the model."""

from transformers import AutoProcessor

from medmvl.models.configuration import MedMVLConfig
from medmvl.processing.image2d import ImageProcessor
from medmvl.processing.processor import MedMVLProcessor
from medmvl.processing.volume3d import Normalisation, VolumeProcessor

AutoProcessor.register(MedMVLConfig, MedMVLProcessor, exist_ok=True)

__all__ = ["ImageProcessor", "MedMVLProcessor", "Normalisation", "VolumeProcessor"]
