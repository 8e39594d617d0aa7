"""MedM-VL: build, train, evaluate and deploy small medical vision-language models.

Public names are imported at first use, so that `import medmvl` and `medmvl --help` stay quick.
The import also registers the classes with transformers' Auto classes, still without importing either library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medmvl import auto_classes
from medmvl.lazy import lazy_names

if TYPE_CHECKING:
    from medmvl.imaging import geometry, read_image, read_volume
    from medmvl.inference import Predictor
    from medmvl.models import MedMVLConfig, MedMVLForConditionalGeneration
    from medmvl.processing import MedMVLProcessor

__version__ = "0.1.0"

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "MedMVLConfig": "medmvl.models",
        "MedMVLForConditionalGeneration": "medmvl.models",
        "MedMVLProcessor": "medmvl.processing",
        "Predictor": "medmvl.inference",
        "geometry": "medmvl.imaging",
        "read_image": "medmvl.imaging",
        "read_volume": "medmvl.imaging",
    },
)

__all__ = [
    "MedMVLConfig",
    "MedMVLForConditionalGeneration",
    "MedMVLProcessor",
    "Predictor",
    "geometry",
    "read_image",
    "read_volume",
]


auto_classes.register(__name__)
