"""Samples to tensors and labels: joins imaging, data and models; saved with the model."""

from medmvl.processing.image2d import ImageProcessor
from medmvl.processing.processor import MedMVLProcessor
from medmvl.processing.volume3d import Normalization, VolumeProcessor

__all__ = ["ImageProcessor", "MedMVLProcessor", "Normalization", "VolumeProcessor"]
