"""MedM-VL: build, train, evaluate and deploy small medical vision-language models.

Public names are imported at first use, so that `import medmvl` and `medmvl --help` stay quick.
The import also registers the classes with transformers' Auto classes, still without importing either library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medmvl import auto_classes

if TYPE_CHECKING:
    from medmvl.imaging import geometry, read_image, read_volume
    from medmvl.inference import Predictor
    from medmvl.models import MedMVLConfig, MedMVLForConditionalGeneration
    from medmvl.processing import MedMVLProcessor

__version__ = "0.1.0"

_HOMES = {
    "MedMVLConfig": "medmvl.models",
    "MedMVLForConditionalGeneration": "medmvl.models",
    "MedMVLProcessor": "medmvl.processing",
    "Predictor": "medmvl.inference",
    "geometry": "medmvl.imaging",
    "read_image": "medmvl.imaging",
    "read_volume": "medmvl.imaging",
}

__all__ = [
    "MedMVLConfig",
    "MedMVLForConditionalGeneration",
    "MedMVLProcessor",
    "Predictor",
    "geometry",
    "read_image",
    "read_volume",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medmvl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


auto_classes.register(__name__)
