"""Samples to tensors and labels: joins imaging, data and models; saved with the model.

Names are imported at first use: the chat templates need no torch.
"""

from typing import TYPE_CHECKING

from medmvl.lazy import lazy_names

if TYPE_CHECKING:
    from medmvl.processing.image2d import ImageProcessor
    from medmvl.processing.processor import MedMVLProcessor
    from medmvl.processing.volume3d import Normalization, VolumeProcessor

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ImageProcessor": "medmvl.processing.image2d",
        "MedMVLProcessor": "medmvl.processing.processor",
        "Normalization": "medmvl.processing.volume3d",
        "VolumeProcessor": "medmvl.processing.volume3d",
    },
)

__all__ = [
    "ImageProcessor",
    "MedMVLProcessor",
    "Normalization",
    "VolumeProcessor",
]
